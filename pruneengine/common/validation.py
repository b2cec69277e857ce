"""Checks of the fields of a value, with the value and what was expected in the message."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pruneengine.common.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def require_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise ValueError if a value is not one of the choices."""
    if value not in choices:
        raise InputError(f"unknown {name} {value!r}; choose from {', '.join(choices)}")


def require_number(name: str, value: Any) -> None:
    """Raise TypeError if a value is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputTypeError(f"{name} must be a number, got {value!r}")


def require_within(name: str, value: Any, least: float, most: float) -> None:
    """Raise TypeError or ValueError if a value is not a number in ``[least, most]``."""
    require_number(name, value)
    if not least <= value <= most:
        raise InputError(f"{name} must lie in [{least}, {most}], got {value}")


def require_whole(name: str, value: Any, least: int = 0, expected: str | None = None) -> None:
    """Raise ValueError if a value is not a whole number from ``least``; ``expected`` replaces these words."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be {expected or f'a whole number from {least}'}, got {value!r}")


def read_names(name: str, value: Any) -> tuple[str, ...]:
    """Return names and ``re:`` patterns from several texts, or from one (:func:`split_names`); TypeError otherwise."""
    names = split_names(value) if isinstance(value, str) else value
    if not isinstance(names, Collection) or not all(isinstance(part, str) for part in names):
        raise InputTypeError(f"{name} must be names, comma separated or in a list, got {value!r}")
    return tuple(part.strip() for part in names)


def split_names(text: str) -> tuple[str, ...]:
    """Split names and ``re:`` patterns at commas, but not at those within braces or brackets: ``re:a{1,2}``."""
    parts = re.split(r",(?![^{}]*\})(?![^\[\]]*\])", text)
    return tuple(part.strip() for part in parts if part.strip())


def from_known(
    kind: type[T], values: Mapping[str, Any], what: str = "option", former: Mapping[str, str] | None = None
) -> T:
    """Return a dataclass made of values by name; ValueError for an unknown name, with the known ones.

    Args:
        kind: the dataclass.
        values: by the names of its fields; where two stand for one field, the later counts.
        what: a word for a field in the message of an error.
        former: names of today by the former names of fields.
    """
    values = {(former or {}).get(name, name): value for name, value in values.items()}
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := values.keys() - set(known):
        shown = ", ".join(sorted(known) if what == "option" else known)
        raise InputError(f"unknown {what} {min(map(str, unknown))!r}; known: {shown}")
    return kind(**values)
