"""JSON files of plans, with one line per field and one per entry of a field that is an object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pruneengine.common.errors import InputError


def plan_to_json(layout: str, fields: Mapping[str, Any]) -> str:
    """Return the text of a plan's file.

    Args:
        layout: name and version of the file format, written as the field ``format``.
        fields: plain values by name, in the order of the file.
    """
    entries = {"format": layout} | dict(fields)
    return _print_object((name, _print_value(value)) for name, value in entries.items()) + "\n"


def parse_plan(text: str, kind: str) -> Any:
    """Return the values in the text of a plan's file; ValueError if it is not JSON.

    Args:
        text: the file's content.
        kind: the kind of plan in the message of an error, such as "sparse plan".
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not a {kind}: {error}") from None


def plan_fields(values: Any, layout: str, kind: str) -> dict[str, Any]:
    """Return the fields of a plan without ``format``; ValueError if ``values`` is no object of this format."""
    if not isinstance(values, dict) or values.get("format") != layout:
        held = f"format {values.get('format')!r}" if isinstance(values, dict) else type(values).__name__
        raise InputError(f"not a {kind}: expected a JSON object with format {layout!r}, got {held}")
    return {name: value for name, value in values.items() if name != "format"}


def read_plan(path: str | Path, kind: str) -> str:
    """Return the text of a plan's file; ValueError with the file's name if it cannot be read."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a {kind} ({error})") from None


def _print_value(value: Any) -> str:
    if isinstance(value, dict):
        return _print_object((name, json.dumps(item)) for name, item in value.items())
    return json.dumps(value)


def _print_object(items: Iterable[tuple[str, str]]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in items) + "\n}"
