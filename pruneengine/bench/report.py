"""Text report of a run: one line per provider, with rate, share of the machine's limit, and speed-up."""

from __future__ import annotations

from pruneengine.bench.measure import OpRow, Outcome
from pruneengine.bench.providers import OURS

WIDTHS = (12, 9, 9, 9, 16, 7)
HEADER = ("provider", "median", "p20", "p80", "rate", "share")


def lines(outcome: Outcome) -> list[str]:
    """Return the case, then one line each for the providers, the machine's limit and failed providers."""
    times = {row.provider: row for row in outcome.rows if row.quantity == "time"}
    rows = {(row.provider, row.quantity): row for row in outcome.rows}
    dtype = outcome.rows[0].dtype if outcome.rows else ""
    text = [f"{outcome.case.title}  {outcome.shape} {dtype}".rstrip()]
    if times:
        text.append(_columns(*HEADER, "faster than"))
    for name, time in times.items():
        rate, share = rows[name, "rate"], rows.get((name, "share"))
        against = [other for other in times if other not in OURS] if name in OURS else []
        ratios = ", ".join(f"{other} {times[other].median / time.median:.1f}x" for other in against)
        spread = (duration(value) for value in (time.median, time.p20, time.p80))
        text.append(_columns(name, *spread, _rate(rate), f"{share.median:.0%}" if share else "", ratios))
    limits = [row for row in outcome.rows if row.quantity == "rate" and row.provider not in times]
    text += [_columns(row.provider, "", "", "", _rate(row), "limit", "") for row in limits]
    text += [f"  {name:<{WIDTHS[0]}}FAILED the gate, not timed: {why}" for name, why in outcome.failures.items()]
    return text


def duration(seconds: float) -> str:
    """Return ``412 us``, ``1.53 ms`` or ``2.31 s``."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _rate(row: OpRow) -> str:
    return f"{row.median:.3g} {row.unit}"


def _columns(*cells: str) -> str:
    padded = "".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False))
    return f"  {padded}{cells[-1]}".rstrip()
