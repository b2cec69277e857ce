"""What an allocation's text means: a name, an allocation function, or sparsities that somebody wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneengine.sparse.functions.function import PUBLISHED, Function, is_function_file
from pruneengine.sparse.functions.grammar import parse

NAMES = ("uniform", "global", "er", "er-plus", "owl", "dsa")


@dataclass(frozen=True)
class WrittenSparsities:
    """Sparsities as they were written down (:func:`pruneengine.sparse.allocations.written.read_sparsities`).

    Attributes:
        content: a list, an object or the fields of a plan.
        path: the file that held them; None where the allocation itself does.
    """

    content: list[Any] | dict[str, Any]
    path: Path | None = None

    @property
    def is_plan(self) -> bool:
        """Whether the content says of itself that it is a plan."""
        return isinstance(self.content, dict) and "format" in self.content

    @property
    def words(self) -> str:
        """Where they came from."""
        if self.path is not None:
            return f"file {self.path.name}"
        if self.is_plan:
            return "plan of an earlier prune"
        return "sparsities by layer" if isinstance(self.content, list) else "sparsities by layer or linear"


def parse_allocation(allocation: str) -> str | Function | WrittenSparsities:
    """One of :data:`NAMES` but "dsa", which is a function; a function; or sparsities.

    Raises:
        ValueError: none of these, or a file that cannot be read.
    """
    if allocation in NAMES:
        return PUBLISHED if allocation == "dsa" else allocation
    if (content := read_inline(allocation)) is not None:
        return WrittenSparsities(content)
    if "|" in allocation or allocation.startswith("W:("):
        return parse(allocation)
    path = Path(allocation)
    try:
        found = path.is_file()
    except OSError:
        found = False
    if not found:
        raise ValueError(
            f"unknown allocation {allocation!r}: expected {', '.join(NAMES)}, a function such as "
            "'abslog | var | atan, asin', sparsities such as [0.5, 0.6, 0.7], or a file that exists"
        )
    return Function.load(path) if is_function_file(path) else WrittenSparsities(_read(path), path)


def without_files(allocation: str) -> str:
    """The same allocation, as a text that means it when its file is elsewhere, or is edited.

    Raises:
        ValueError: as :func:`parse_allocation`.
    """
    meaning = parse_allocation(allocation)
    if allocation in NAMES:
        return allocation
    if isinstance(meaning, Function):
        return str(meaning)
    return write_inline(meaning.content)


def _read(path: Path) -> list[Any] | dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as an allocation ({error})") from None
    if not isinstance(content, list | dict):
        raise ValueError(f"{path}: expected a list, an object or a plan, got {type(content).__name__}")
    return content


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
