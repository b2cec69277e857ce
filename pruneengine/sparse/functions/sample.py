"""Weighted samples that stand for the scores of each block: one value per bin of their histogram.

The bins are 1.6 to 3.1% wide. Each value starts at the mean of its bin under a density with the local slope. Then
all values are moved as little as possible (in bins, squared, over all scores) until the sums of the logarithms and of
the first four powers are exact. So the values are right for weights of few bits, which sit on the left halves of the
bins, and for the few greatest scores, which dominate an exponential. Zero, the least and the greatest score are values
of their own.
"""

from __future__ import annotations

import numpy as np

from pruneengine.ops.reference import HISTOGRAM_BINS, MOMENTS, histogram_edges
from pruneengine.sparse.functions.operations import Array

_COLUMN = {name: index for index, name in enumerate(MOMENTS)}
# Greatest relative change of density across a bin that the counts of its neighbours can show; beyond, they are noise.
_STEEPEST = 1.5
_SUMS = ("sum", "sum2", "sum3", "sum4")
_STEPS = 2
_CONDITION = 1e-6


def sample_of(moments: Array, histogram: Array) -> tuple[Array, Array]:
    """Return ``(values, weights)`` for the scores of B blocks, both float64 ``[B, K]``, K at most 2,051.

    Where a weight is 0 the value is the block's greatest, so that the extremes of any function of the values are those
    of a score.

    Args:
        moments: float64 ``[B, 12]`` of :func:`pruneengine.ops.block_moments`.
        histogram: counts ``[B, 2048]`` of the same op.
    """
    low, high = (moments[:, _COLUMN[name]] for name in ("min", "max"))
    zeros = moments[:, _COLUMN["count"]] - moments[:, _COLUMN["positive"]]
    counts = histogram.astype(np.float64)
    counts[:, 0] -= zeros
    lower = histogram_edges().numpy().astype(np.float64)
    upper = np.broadcast_to(np.append(lower[1:], lower[-1]), counts.shape).copy()
    upper[:, -1] = np.maximum(upper[:, -1], high)
    slope = _slope(counts, upper - lower)

    inner = counts.copy()  # without the extremes
    blocks = np.arange(len(counts))
    extremes, ends = [], []
    for extreme in (high, low):
        bins = np.clip(np.searchsorted(lower, extreme, side="right") - 1, 0, HISTOGRAM_BINS - 1)
        taken = np.minimum(inner[blocks, bins], 1.0) * (extreme > 0)
        inner[blocks, bins] -= taken
        extremes.append(extreme)
        ends.append(taken)

    width = upper - lower
    used = inner.any(0)
    inner, lower, width = inner[:, used], lower[used], width[:, used]
    inside = np.clip(0.5 + slope[:, used] / 12, 0, 1)
    inside = _fitted(inside, lower, width, inner, moments, list(zip(extremes, ends, strict=True)))
    values = np.clip(lower + width * inside, np.where(low > 0, low, 0)[:, None], high[:, None])

    values = np.column_stack([np.zeros_like(high), *extremes, values])
    weights = np.column_stack([zeros, *ends, inner])
    return np.where(weights > 0, values, high[:, None]), weights


def _fitted(
    inside: Array, lower: Array, width: Array, counts: Array, moments: Array, extremes: list[tuple[Array, Array]]
) -> Array:
    """Return ``inside``, each value's place in its bin (0 to 1), moved least so that the five sums are exact."""
    high = moments[:, [_COLUMN["max"]]]
    high = np.where(high > 0, high, 1.0)
    scaled = [moments[:, [_COLUMN[name]]] / high**power for power, name in enumerate(_SUMS, 1)]
    log = moments[:, [_COLUMN["log"]]] - moments[:, [_COLUMN["positive"]]] * np.log(high)
    exact = np.column_stack([log, *scaled])
    for extreme, taken in extremes:
        exact -= taken[:, None] * _sums(np.where(taken > 0, extreme, high[:, 0])[:, None] / high, np.ones_like(high))
    for _ in range(_STEPS):
        u = np.where(counts > 0, (lower + width * inside) / high, 1.0)
        # [B, 5, K]: change of each sum with the place of a value, for one score in the bin.
        moves = np.stack([1 / u, *(power * u ** (power - 1) for power in (1, 2, 3, 4))], 1) * (width / high)[:, None]
        gram = np.einsum("bik,bjk,bk->bij", moves, moves, counts)
        scale = np.sqrt(np.maximum(np.einsum("bii->bi", gram), np.finfo(np.float64).tiny))
        gram /= scale[:, :, None] * scale[:, None, :]
        missing = (exact - _sums(u, counts)) / scale
        solved = np.einsum("bij,bj->bi", np.linalg.pinv(gram, rcond=_CONDITION, hermitian=True), missing) / scale
        inside = np.clip(inside + np.einsum("bi,bik->bk", solved, moves), 0, 1)
    return inside


def _sums(u: Array, counts: Array) -> Array:
    """Return the sums of the logarithm and of the first four powers: ``[B, 5]``."""
    return np.stack([(counts * f).sum(1) for f in (np.log(u), u, u**2, u**3, u**4)], 1)


def _slope(counts: Array, width: Array) -> Array:
    """Return the relative change of density across each bin, from the bins beside it."""
    density = np.divide(counts, width, out=np.zeros_like(counts), where=width > 0)
    slope = np.zeros_like(counts)
    rise = (density[:, 2:] - density[:, :-2]) / 2
    middle = density[:, 1:-1]
    np.divide(rise, middle, out=slope[:, 1:-1], where=middle > 0)
    return np.clip(slope, -_STEEPEST, _STEEPEST)
