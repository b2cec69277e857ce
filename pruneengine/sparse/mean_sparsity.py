"""Sparsities that are moved until their mean over weights is the target, and none is out of its bounds."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence


def meet_mean(
    values: Sequence[float], sizes: Sequence[int], target: float, low: Sequence[float], high: Sequence[float]
) -> list[float]:
    """``clip(value + shift, low, high)`` with the one shift that gives the target.

    Args:
        values: finite numbers, one a part.
        sizes: weights of each part.
        target: the mean over weights, to 1e-12.
        low, high: bounds of each part.

    Raises:
        ValueError: a target that the bounds do not allow, with what they do.
    """
    total = sum(sizes)

    def at(shift: float) -> list[float]:
        parts = zip(values, low, high, strict=True)
        return [min(max(value + shift, least), most) for value, least, most in parts]

    def mean(parts: Sequence[float]) -> float:
        return math.fsum(part * size for part, size in zip(parts, sizes, strict=True)) / total

    least, most = mean(low), mean(high)
    if not least - 1e-12 <= target <= most + 1e-12:
        raise ValueError(f"a mean sparsity of {target:g} is out of reach: expected {least:.6g} to {most:.6g}")
    # Between two neighbouring bends the mean is linear in the shift.
    bends = sorted({bound - value for bounds in (low, high) for bound, value in zip(bounds, values, strict=True)})
    place = bisect.bisect_left(bends, target, key=lambda shift: mean(at(shift)))
    if place in (0, len(bends)):
        return at(bends[min(place, len(bends) - 1)])
    before, after = bends[place - 1], bends[place]
    start, end = mean(at(before)), mean(at(after))
    return at(before + (after - before) * ((target - start) / (end - start)))
