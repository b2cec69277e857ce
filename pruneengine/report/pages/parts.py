"""Tables that every verb's page has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pruneengine.report.page import Section, Table
from pruneengine.report.words import change, duration, percent, plain

Form = Callable[[float | None], str]
Row = tuple[str, float | None, float | None, Form]


def before_and_after(rows: Iterable[Row]) -> Table:
    """Dense beside pruned, and the relative change; a row says how its values are written."""
    cells = tuple((name, form(dense), form(pruned), change(dense, pruned)) for name, dense, pruned, form in rows)
    return Table(("", "dense", "pruned", "change"), cells)


def pairs(values: Mapping[str, Any], caption: str = "") -> Table:
    """Names and what they hold, in words; mappings within are spread out."""
    return Table(("", ""), tuple(_flat(values)), caption, left=2)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", plain(value)


def times(seconds: Mapping[str, float | None] | float | None) -> Section:
    """Where the time went; a single number is the total."""
    if seconds is None:
        return Section("Time")
    if not isinstance(seconds, Mapping):
        return Section("Time", (f"{duration(seconds)} in all.",))
    return Section("Time", tables=(stage_table(seconds),))


def stage_table(seconds: Mapping[str, float | None], caption: str = "") -> Table:
    """Seconds by stage, each one's share, and their sum."""
    total = sum(spent or 0 for spent in seconds.values())
    shares = ((stage, duration(spent), percent((spent or 0) / (total or 1), 1)) for stage, spent in seconds.items())
    rows = (*shares, ("total", duration(total), "")) if seconds else ()
    return Table(("stage", "time", "share"), rows, caption, total=True)


def provenance(
    versions: Mapping[str, Any] | None, hashes: Mapping[str, Any] | None = None, seed: int | None = None
) -> Section:
    """What the numbers depend on, apart from the recipe: versions, seed and hashes."""
    seeds = None if seed is None else {"seed": seed}
    given = (("Versions", versions), ("Seeds", seeds), ("Hashes", hashes))
    return Section("What made it", tables=tuple(pairs(values, caption) for caption, values in given if values))
