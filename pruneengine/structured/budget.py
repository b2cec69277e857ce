"""Allocation of a parameter budget to groups, where a group at its limit passes the rest on to the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pruneengine.model import Group


def rank_to_budget(groups: Sequence[Group], densities: Mapping[str, Tensor], budget: float) -> dict[str, float]:
    """Remove units in the ascending order of one ranking until the budget is met; the best unit of a group stays.

    Args:
        groups: the groups that compete.
        densities: score per parameter of each unit, float64 ``[units]`` per group name.
        budget: parameters to remove.

    Returns:
        ``{group name: ratio}``, whole units.
    """
    ordered, params, owner = [], [], []
    for position, group in enumerate(groups):
        values = densities[group.name].sort().values[:-1]
        ordered.append(values)
        params.append(torch.full_like(values, group.unit_params))
        owner.append(torch.full_like(values, position, dtype=torch.int64))
    order = torch.cat(ordered).argsort(stable=True)
    spent = torch.cat(params)[order].cumsum(0)
    count = int(torch.searchsorted(spent, budget))
    removed = torch.bincount(torch.cat(owner)[order[:count]], minlength=len(groups))
    return {group.name: int(n) / group.units for group, n in zip(groups, removed, strict=True)}


def most_of(group: Group, cap: float = 1.0) -> float:
    """Return the largest ratio a group can have: its last unit stays, and no more than ``cap`` goes."""
    return min(cap, 1 - 1 / group.units)


def scale_to_budget(
    groups: Sequence[Group], profile: Mapping[str, float], budget: float, cap: float = 1.0
) -> dict[str, float]:
    """Scale a profile of ratios to the budget; a group that comes to its limit passes the rest on.

    Args:
        groups: the groups that give.
        profile: non-negative, the ratios' proportions per group name.
        budget: parameters to remove, at most what the limits allow.
        cap: no ratio exceeds it; one unit of every group stays in any case.

    Returns:
        ``{group name: ratio}``; times the groups' parameters they add up to the budget.
    """

    def proportions(remaining: Sequence[Group]) -> dict[str, float]:
        peak = max(profile[g.name] for g in remaining)
        # Where nothing is left to scale, the budget of the full groups is spread evenly.
        return {g.name: profile[g.name] / peak if peak > 0 else 1.0 for g in remaining}

    return _scale(groups, proportions, lambda group: group.params, lambda group: most_of(group, cap), budget)


def scale_counts(groups: Sequence[Group], counts: Mapping[str, float], budget: float) -> dict[str, float]:
    """Scale counts of removed units, not rounded yet, to the budget; a group at its limit passes the rest on.

    Args:
        groups: the groups that give.
        counts: units to remove per group name, non-negative; only their proportions count.
        budget: parameters to remove; nothing is removed where it is negative.

    Returns:
        ``{group name: units}``; one unit of every group stays.
    """

    def proportions(remaining: Sequence[Group]) -> dict[str, float]:
        if any(counts[g.name] > 0 for g in remaining):
            return {g.name: counts[g.name] for g in remaining}
        # Nothing was to be removed here, yet heads left a remainder: spread it evenly.
        return {g.name: float(g.units) for g in remaining}

    return _scale(groups, proportions, lambda group: group.unit_params, lambda group: group.units - 1, max(0.0, budget))


def _scale(
    groups: Sequence[Group],
    proportions: Callable[[Sequence[Group]], Mapping[str, float]],
    price: Callable[[Group], int],
    limit: Callable[[Group], float],
    budget: float,
) -> dict[str, float]:
    """Return the proportions times the one factor that spends the budget, with every group within its limit.

    Args:
        groups: the groups that give.
        proportions: non-negative amounts, not all zero, of the groups that are not at their limit.
        price: parameters that an amount of one removes.
        limit: the largest amount of a group.
        budget: parameters to remove.
    """
    amounts: dict[str, float] = {}
    remaining = list(groups)
    while remaining:
        shape = proportions(remaining)
        factor = budget / sum(shape[g.name] * price(g) for g in remaining)
        full = [g for g in remaining if shape[g.name] * factor > limit(g)]
        if not full:
            return amounts | {g.name: shape[g.name] * factor for g in remaining}
        for group in full:
            amounts[group.name] = float(limit(group))
            budget -= amounts[group.name] * price(group)
        remaining = [g for g in remaining if g not in full]
    return amounts
