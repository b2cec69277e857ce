"""Parser of allocation texts: a name, an allocation function, or sparsities that somebody wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.sparse.functions.function import PUBLISHED, Function, is_function_file
from pruneengine.sparse.functions.grammar import parse

NAMES = ("uniform", "global", "er", "er-plus", "owl", "dsa")


@dataclass(frozen=True)
class WrittenSparsities:
    """Sparsities as they were written down (:func:`pruneengine.sparse.allocations.written.read_sparsities`).

    Attributes:
        content: a list, an object or the fields of a plan.
        path: of the file with the sparsities; None where they stand in the allocation itself.
    """

    content: list[Any] | dict[str, Any]
    path: Path | None = None

    @property
    def is_plan(self) -> bool:
        """True where the content has the field ``format`` of a plan."""
        return isinstance(self.content, dict) and "format" in self.content

    @property
    def words(self) -> str:
        """Origin of the sparsities, for reports."""
        if self.path is not None:
            return f"file {self.path.name}"
        if self.is_plan:
            return "plan of an earlier prune"
        return "sparsities by layer" if isinstance(self.content, list) else "sparsities by layer or linear"


def parse_allocation(allocation: str) -> str | Function | WrittenSparsities:
    """Return the value of an allocation text: a name, a function or sparsities.

    A name is one of :data:`NAMES`, but "dsa" comes back as its function.

    Raises:
        ValueError: the text is none of these, or a file cannot be read.
    """
    if allocation in NAMES:
        return PUBLISHED if allocation == "dsa" else allocation
    if (content := read_inline(allocation)) is not None:
        return WrittenSparsities(content)
    if "|" in allocation or allocation.startswith("W:("):
        return parse(allocation)
    path = Path(allocation)
    try:
        exists = path.is_file()
    except OSError:  # a text too long for a path
        exists = False
    if not exists:
        raise InputError(
            f"unknown allocation {allocation!r}: expected {', '.join(NAMES)}, a function such as "
            "'abslog | var | atan, asin', sparsities such as [0.5, 0.6, 0.7], or a file that exists"
        )
    return Function.load(path) if is_function_file(path) else WrittenSparsities(_read_file(path), path)


def without_files(allocation: str) -> str:
    """Return the same allocation as a text that needs no file, which may be moved or edited later.

    Raises:
        ValueError: as :func:`parse_allocation`.
    """
    parsed = parse_allocation(allocation)
    if allocation in NAMES:
        return allocation
    return write_inline(parsed.content) if isinstance(parsed, WrittenSparsities) else str(parsed)


def read_inline(allocation: str) -> list[Any] | dict[str, Any] | None:
    """Return the list or object that a text holds as JSON; None for every other allocation."""
    if not allocation.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(allocation)
    except ValueError:
        return None


def write_inline(values: Sequence[Any] | Mapping[Any, Any]) -> str:
    """Return the text that :func:`read_inline` reads; raise TypeError for values that JSON cannot hold.

    Layers' indices, which YAML reads as numbers, become text, as JSON has them.
    """
    try:
        return json.dumps(dict(values) if isinstance(values, Mapping) else list(values))
    except TypeError as error:
        raise InputTypeError(f"allocation must hold numbers by name or in a list ({error})") from None


def _read_file(path: Path) -> list[Any] | dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as an allocation ({error})") from None
    if not isinstance(content, list | dict):
        raise InputError(f"{path}: expected a list, an object or a plan, got {type(content).__name__}")
    return content
