"""Tables and sections that several pages share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pruneengine.report.page import Section, Table
from pruneengine.report.words import change, count, duration, number, percent, plain

Form = Callable[[float | None], str]
Row = tuple[str, float | None, float | None, Form]

STATES = {"pruned": "stopped"}


def before_and_after(rows: Iterable[Row]) -> Table:
    """Return the table of dense beside pruned with the relative change; each row brings the form of its values."""
    cells = tuple((name, form(dense), form(pruned), change(dense, pruned)) for name, dense, pruned, form in rows)
    return Table(("", "dense", "pruned", "change"), cells)


def pairs(values: Mapping[str, Any], caption: str = "") -> Table:
    """Return a table of names and their values in words; mappings within are spread out."""
    return Table(("", ""), tuple(_flat(values)), caption, left=2)


def times(seconds: Mapping[str, float | None] | float | None) -> Section:
    """Return the section of the seconds by stage; a single number is the total."""
    if seconds is None:
        return Section("Time")
    if not isinstance(seconds, Mapping):
        return Section("Time", (f"{duration(seconds)} in all.",))
    return Section("Time", tables=(stage_table(seconds),))


def stage_table(seconds: Mapping[str, float | None], caption: str = "") -> Table:
    """Return the table of seconds by stage, the share of each, and their sum."""
    total = sum(spent or 0 for spent in seconds.values())
    shares = ((stage, duration(spent), percent((spent or 0) / (total or 1), 1)) for stage, spent in seconds.items())
    rows = (*shares, ("total", duration(total), "")) if seconds else ()
    return Table(("stage", "time", "share"), rows, caption, total=True)


def provenance(
    versions: Mapping[str, Any] | None, hashes: Mapping[str, Any] | None = None, seed: int | None = None
) -> Section:
    """Return the section of what the numbers depend on apart from the recipe: versions, seed and hashes."""
    seeds = None if seed is None else {"seed": seed}
    given = (("Versions", versions), ("Seeds", seeds), ("Hashes", hashes))
    return Section("What made it", tables=tuple(pairs(values, caption) for caption, values in given if values))


def search_times(seconds: Mapping[str, float | None] | float | None, trials: Mapping[str, float | None]) -> Section:
    """Return the section of a search's seconds by stage, and below them those of all trials together."""
    whole = times(seconds)
    return Section("Time", whole.paragraphs, (*whole.tables, stage_table(trials, "Inside the trials, all together")))


def values_in_words(trials: Iterable[Mapping[str, Any]]) -> str:
    """Return how many trials ran to the end, the first value and the best: the text of a picture of the history."""
    values = [trial["value"] for trial in trials if trial["state"] == "complete" and trial["value"] is not None]
    if not values:
        return "No values."
    return f"{len(values)} values, the first {number(values[0])}, the best {number(min(values))}."


def trial_cells(trial: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the cells that a trial's row begins with: number, origin and state."""
    return str(trial["number"]), str(trial["origin"]), STATES.get(trial["state"], trial["state"])


def texts_table(texts: Mapping[str, Any]) -> Table:
    """Return the table of a search's texts: source, hash, what each shares with others, and size."""
    rows = tuple(
        (
            name, plain(text.get("spec")), plain(text.get("hash"))[:12], text_overlap(text) or "none",
            count(text.get("windows")), count(text.get("tokens")),
        )
        for name, text in texts.items()
    )  # fmt: skip
    return Table(("text", "from", "hash", "overlap", "windows", "tokens"), rows, left=4)


def text_overlap(text: Mapping[str, Any]) -> str:
    """Return the share of a text's windows that each other text has a run of; texts that share none are left out."""
    shares = text.get("overlap") or {}
    if not isinstance(shares, Mapping):
        return plain(shares)
    return ", ".join(f"{name}: {percent(share, 1)}" for name, share in shares.items() if share)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yield names and values in words, names within mappings joined by dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", plain(value)
