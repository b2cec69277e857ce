"""A weighted sample that stands for the scores of each block: one value for each bin of their histogram.

The bins are 1.6 to 3.1% wide. A value is where the mean of its bin must lie: the bin's own slope of density is
followed, and one shift in common makes the sample's sum the exact one (weights of few bits sit on the bins' left
halves). Zero, the least and the greatest score are values of their own.
"""

from __future__ import annotations

import numpy as np

from pruneengine.reference import HISTOGRAM_BINS, MOMENTS, histogram_edges
from pruneengine.sparse.operations import Array

_COLUMN = {name: index for index, name in enumerate(MOMENTS)}
# The counts of neighbours tell a slope of density up to this much of the density across a bin; beyond, they are noise.
_STEEPEST = 1.5


def sample_of(moments: Array, histogram: Array) -> tuple[Array, Array]:
    """``(values, weights)`` of the scores of B blocks, both float64 ``[B, K]``, K at most 2,051.

    Where a block has nothing (weight 0) the value is the block's greatest, so that the extremes of any function of the
    values are those of a score.

    Args:
        moments: float64 ``[B, 12]``, :func:`pruneengine.ops.block_moments`.
        histogram: counts ``[B, 2048]``, of the same.
    """
    total, low, high = (moments[:, _COLUMN[name]] for name in ("sum", "min", "max"))
    zeros = moments[:, _COLUMN["count"]] - moments[:, _COLUMN["positive"]]
    counts = histogram.astype(np.float64)
    counts[:, 0] -= zeros
    lower = histogram_edges().numpy().astype(np.float64)
    upper = np.broadcast_to(np.append(lower[1:], lower[-1]), counts.shape).copy()
    upper[:, -1] = np.maximum(upper[:, -1], high)
    slope = _slope(counts, upper - lower)

    left = counts.copy()
    blocks = np.arange(len(counts))
    extremes, ends = [], []
    for extreme in (high, low):
        bins = np.clip(np.searchsorted(lower, extreme, side="right") - 1, 0, HISTOGRAM_BINS - 1)
        taken = np.minimum(left[blocks, bins], 1.0) * (extreme > 0)
        left[blocks, bins] -= taken
        extremes.append(extreme)
        ends.append(taken)

    width = upper - lower
    fixed = (left * (lower + width * slope / 12)).sum(1) + sum(x * w for x, w in zip(extremes, ends, strict=True))
    spread = (left * width).sum(1)
    shift = np.divide(total - fixed, spread, out=np.full(len(total), 0.5), where=spread > 0)
    inside = np.clip(np.clip(shift, 0, 1)[:, None] + slope / 12, 0, 1)
    values = np.clip(lower + width * inside, np.where(low > 0, low, 0)[:, None], high[:, None])

    used = left.any(0)
    nothing = np.zeros_like(total)
    values = np.column_stack([nothing, *extremes, values[:, used]])
    weights = np.column_stack([zeros, *ends, left[:, used]])
    return np.where(weights > 0, values, high[:, None]), weights


def _slope(counts: Array, width: Array) -> Array:
    """The change of density across a bin over the density in it, from the bins beside it."""
    density = np.divide(counts, width, out=np.zeros_like(counts), where=width > 0)
    slope = np.zeros_like(counts)
    rise = (density[:, 2:] - density[:, :-2]) / 2
    inner = density[:, 1:-1]
    np.divide(rise, inner, out=slope[:, 1:-1], where=inner > 0)
    return np.clip(slope, -_STEEPEST, _STEEPEST)
