"""Experts that no calibration token reached."""

from __future__ import annotations

from collections.abc import Sequence

from pruneengine.calibration.statistics import Statistics
from pruneengine.model import Structure


def idle_experts(structure: Structure, statistics: Statistics) -> tuple[str, ...]:
    """Experts that no calibration token was sent to, such as ``layers.3.experts.0``."""
    found = []
    for group in structure.groups:
        if group.part == "experts.mlp":
            out = group.members[-1]
            seen = [
                rows[name] for rows in statistics.tensors.values() for name in (out.site, out.module) if name in rows
            ]
            if seen and not any(bool(rows.any()) for rows in seen):
                found.append(group.name.removesuffix(".mlp"))
    return tuple(found)


def idle_words(experts: Sequence[str], consequence: str) -> tuple[str, ...]:
    """A warning about experts that no calibration token was sent to; none without any."""
    if not experts:
        return ()
    more = f" and {len(experts) - 4} more" if len(experts) > 4 else ""
    return (f"no calibration token was sent to {', '.join(experts[:4])}{more}: {consequence}",)
