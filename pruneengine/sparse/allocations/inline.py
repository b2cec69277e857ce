"""Sparsities that are written where an allocation's name would stand: as values in a recipe, as JSON in a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def read_inline(allocation: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a text holds as JSON; None where it is another allocation."""
    if not allocation.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(allocation)
    except ValueError:
        return None


def write_inline(values: Sequence[Any] | Mapping[Any, Any]) -> str:
    """The text that :func:`read_inline` reads; TypeError where it holds what JSON does not.

    YAML reads the index of a layer as a number; JSON has it as text.
    """
    try:
        return json.dumps(dict(values) if isinstance(values, Mapping) else list(values))
    except TypeError as error:
        raise TypeError(f"allocation must hold numbers by name or in a list ({error})") from None
