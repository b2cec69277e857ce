"""Comparison of a theme's rows: a table with ratios to one provider, and a verdict on each target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pruneengine.bench.record import Row


@dataclass(frozen=True)
class Target:
    """A promise: the median of ``provider`` is at most ``factor`` times that of ``base`` in every case."""

    quantity: str
    provider: str
    base: str
    factor: float


def table(rows: Sequence[Row], base: str) -> str:
    """One line a row, with the ratio of its median to that of the provider ``base`` in the same case."""
    medians = {(row.case, row.provider, row.quantity): row.median for row in rows}
    lines = [("case", "provider", "quantity", "median", "p20", "p80", "unit", f"/ {base}")]
    for row in rows:
        reference = medians.get((row.case, base, row.quantity))
        ratio = f"{row.median / reference:.2f}" if reference else ""
        numbers = (f"{value:.4g}" for value in (row.median, row.p20, row.p80))
        lines.append((row.case, row.provider, row.quantity, *numbers, row.unit, ratio))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def verdicts(rows: Sequence[Row], targets: Sequence[Target]) -> list[str]:
    """A line for each target and case that was measured."""
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        medians = {(row.provider, row.quantity): row.median for row in rows if row.case == case}
        for target in targets:
            ours, base = (medians.get((p, target.quantity)) for p in (target.provider, target.base))
            if ours is None or base is None:
                continue
            word = "met" if ours <= target.factor * base else "MISSED"
            lines.append(
                f"{word}: {case}: {target.quantity} of {target.provider} is {ours / base:.3f} x {target.base}, "
                f"target at most {target.factor:g}"
            )
    return lines
