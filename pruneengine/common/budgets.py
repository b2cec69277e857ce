"""Budgets that are met exactly: a common shift within bounds, and rounding by largest remainders."""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from pruneengine.common.errors import InputError

Name = TypeVar("Name", bound=Hashable)


def meet_mean(
    values: Sequence[float], sizes: Sequence[float], target: float, bounds: Sequence[tuple[float, float]]
) -> list[float]:
    """Return ``clip(value + shift, least, most)`` with the one shift whose mean over weights is the target.

    Args:
        values: finite numbers, one per part.
        sizes: weights of each part, or their shares.
        target: the mean over weights, to 1e-12.
        bounds: ``(least, most)`` of each part.

    Returns:
        One sparsity per part.

    Raises:
        ValueError: a target that the bounds do not allow; the message has the means that they do allow.
    """
    total = sum(sizes)

    def at(shift: float) -> list[float]:
        return [min(max(value + shift, low), high) for value, (low, high) in zip(values, bounds, strict=True)]

    def mean(parts: Sequence[float]) -> float:
        return math.fsum(part * size for part, size in zip(parts, sizes, strict=True)) / total

    least, most = (mean([pair[side] for pair in bounds]) for side in (0, 1))
    if not least - 1e-12 <= target <= most + 1e-12:
        raise InputError(f"a mean sparsity of {target:g} is out of reach: expected {least:.6g} to {most:.6g}")
    # Values that meet the target already stay as they are, to the last bit.
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


def largest_remainders(
    wishes: Mapping[Name, float], steps: Mapping[Name, float], total: float, limits: Mapping[Name, int]
) -> dict[Name, int]:
    """Round wishes to whole counts whose sum, weighted by the steps, comes nearest to the total.

    Every count is rounded down first; the largest remainders then take one step more each, as :func:`one_step_more`.

    Args:
        wishes: non-negative counts before rounding, by name.
        steps: size of one count of each name, in the unit of ``total``.
        total: the sum of counts times steps to come to.
        limits: the largest count of each name.

    Returns:
        Counts by name, in the order of ``wishes``.
    """
    # A wish that is whole but for rounding errors is whole.
    counts = {name: min(int(wish + 1e-9), limits[name]) for name, wish in wishes.items()}
    rest = total - sum(count * steps[name] for name, count in counts.items())
    below_limit = [name for name, count in counts.items() if count < limits[name]]
    for name in one_step_more(sorted(below_limit, key=lambda name: counts[name] - wishes[name]), steps, rest):
        counts[name] += 1
    return counts


def one_step_more(order: Iterable[Name], steps: Mapping[Name, float], rest: float) -> list[Name]:
    """Return the names that take one step each so that the rest is spent to the nearest step.

    Args:
        order: the names that may take a step, the most urgent first.
        steps: size of a step by name.
        rest: what is to be spent; a step is taken where at least half of it is still there.
    """
    takers = []
    for name in order:
        if rest >= steps[name] / 2:
            takers.append(name)
            rest -= steps[name]
    return takers
