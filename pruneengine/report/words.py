"""Numbers in words, as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruneengine.common.files import in_words

NOTHING = "–"


def count(value: float | None) -> str:
    """Return ``134,515,008``."""
    return NOTHING if value is None else f"{value:,.0f}"


def short_count(value: float) -> str:
    """Return ``134.5 M``: three or four digits and a magnitude."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def size(value: float | None) -> str:
    """Return bytes as ``538.1 MB`` or ``1.10 GB``, decimal."""
    return NOTHING if value is None else in_words(value)


def duration(seconds: float | None) -> str:
    """Return ``0.03 s``, ``28.9 s``, ``12.5 min`` or ``3.20 h``."""
    if seconds is None:
        return NOTHING
    if seconds >= 7200:
        return f"{seconds / 3600:.2f} h"
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction as ``19.92%``."""
    return NOTHING if fraction is None else f"{fraction:.{digits}%}"


def change(before: float | None, after: float | None) -> str:
    """Return ``−15.7%``, with a real minus sign; nothing where there is no ratio."""
    if before is None or after is None or before == 0:
        return NOTHING
    return f"{after / before - 1:+.1%}".replace("-", "−")


def number(value: float | None, digits: int = 4) -> str:
    """Return ``digits`` significant ones, grouped, with a real minus sign: ``16.50``, ``−0.003142``, ``1,180``."""
    if value is None:
        return NOTHING
    if value < 0:
        return "−" + number(-value, digits)
    if isinstance(value, int) or (abs(value) >= 10 ** (digits - 1) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def signed(value: float | None, digits: int = 3) -> str:
    """Return ``+0.301``."""
    if value is None:
        return NOTHING
    return ("+" if value >= 0 else "−") + number(abs(value), digits)


def with_error(value: Mapping[str, float]) -> str:
    """Return a "mean" and its "standard error" as ``+0.301 ± 0.012``."""
    return f"{signed(value['mean'])} ± {number(value['standard error'], 2)}"


def plain(value: Any) -> str:
    """Return the value of an option or a parameter as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {plain(item)}" for name, item in value.items())
    return str(value)


def clipped(text: str, length: int = 26) -> str:
    """Return the text, with an ellipsis in its middle where it is longer."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"
