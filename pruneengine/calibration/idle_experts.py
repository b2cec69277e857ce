"""Experts that no calibration token reached."""

from __future__ import annotations

from collections.abc import Sequence

from pruneengine.calibration.statistics import Statistics
from pruneengine.model import Structure


def idle_experts(structure: Structure, statistics: Statistics) -> tuple[str, ...]:
    """Return the experts that no calibration token was sent to, such as ``layers.3.experts.0``."""
    idle = []
    for group in structure.groups:
        if group.part == "experts.mlp":
            out = group.members[-1]
            sums = [
                rows[name] for rows in statistics.tensors.values() for name in (out.site, out.module) if name in rows
            ]
            if sums and not any(bool(rows.any()) for rows in sums):
                idle.append(group.name.removesuffix(".mlp"))
    return tuple(idle)


def idle_words(experts: Sequence[str], consequence: str) -> tuple[str, ...]:
    """Return a warning about experts that no calibration token was sent to; an empty tuple without such experts."""
    if not experts:
        return ()
    more = f" and {len(experts) - 4} more" if len(experts) > 4 else ""
    return (f"no calibration token was sent to {', '.join(experts[:4])}{more}: {consequence}",)
