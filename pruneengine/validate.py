"""Checks of the fields of a value, with the value and what was expected in the message."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def require_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuse what is not one of a few names."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(choices)}")


def require_within(name: str, value: Any, least: float, most: float) -> None:
    """Refuse what is not a number in ``[least, most]``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], got {value}")


def require_count(name: str, value: Any) -> None:
    """Refuse what is not a whole number from 0."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} must be a whole number from 0, got {value!r}")
