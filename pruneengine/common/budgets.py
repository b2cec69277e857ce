"""Sparsities that are moved until their mean over weights is the target, and none is out of its bounds."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence


def meet_mean(
    values: Sequence[float], sizes: Sequence[float], target: float, bounds: Sequence[tuple[float, float]]
) -> list[float]:
    """``clip(value + shift, least, most)`` with the one shift that gives the target.

    Args:
        values: finite numbers, one a part.
        sizes: weights of each part, or their shares.
        target: the mean over weights, to 1e-12.
        bounds: ``(least, most)`` of each part.

    Returns:
        One sparsity a part.

    Raises:
        ValueError: a target that the bounds do not allow, with what they do.
    """
    total = sum(sizes)

    def at(shift: float) -> list[float]:
        return [min(max(value + shift, low), high) for value, (low, high) in zip(values, bounds, strict=True)]

    def mean(parts: Sequence[float]) -> float:
        return math.fsum(part * size for part, size in zip(parts, sizes, strict=True)) / total

    least, most = (mean([pair[side] for pair in bounds]) for side in (0, 1))
    if not least - 1e-12 <= target <= most + 1e-12:
        raise ValueError(f"a mean sparsity of {target:g} is out of reach: expected {least:.6g} to {most:.6g}")
    # What is right already stays as it is, to the last bit.
    if abs(mean(at(0.0)) - target) <= 1e-15:
        return at(0.0)
    # Between two neighbouring bends the mean is linear in the shift.
    bends = sorted({bound - value for value, pair in zip(values, bounds, strict=True) for bound in pair})
    place = bisect.bisect_left(bends, target, key=lambda shift: mean(at(shift)))
    if place in (0, len(bends)):
        return at(bends[min(place, len(bends) - 1)])
    before, after = bends[place - 1], bends[place]
    start, end = mean(at(before)), mean(at(after))
    return at(before + (after - before) * ((target - start) / (end - start)))
