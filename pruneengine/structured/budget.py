"""Meeting a budget: who is at a limit passes the rest on to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneengine.model import Group
from pruneengine.structured.scores.score import Scores


def rank_to_budget(groups: Sequence[Group], densities: Mapping[str, Tensor], budget: float) -> dict[str, float]:
    """One ranking over all units: they go in ascending order until the budget is met; the best of a group stays.

    Args:
        groups: what competes.
        densities: what a parameter of each unit is worth, float64 ``[units]`` per group name.
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
    """The largest ratio a group can have: its last unit stays, and no more than ``cap`` goes."""
    return min(cap, 1 - 1 / group.units)


def scale_to_budget(
    groups: Sequence[Group], profile: Mapping[str, float], budget: float, cap: float = 1.0
) -> dict[str, float]:
    """The profile times what meets the budget; a group that comes to its limit passes the rest on.

    Args:
        groups: the groups that give.
        profile: non-negative, the ratios' proportions per group name.
        budget: parameters to remove, at most what the limits allow.
        cap: no ratio exceeds it; one unit of every group stays in any case.

    Returns:
        ``{group name: ratio}``; times the groups' parameters they add up to the budget.
    """
    ratios: dict[str, float] = {}
    remaining = list(groups)
    while remaining:
        peak = max(profile[g.name] for g in remaining)
        # Where nothing is left to scale, what the full groups could not give is spread evenly.
        shape = {g.name: profile[g.name] / peak if peak > 0 else 1.0 for g in remaining}
        factor = budget / sum(shape[g.name] * g.params for g in remaining)
        full = [g for g in remaining if shape[g.name] * factor > most_of(g, cap)]
        if not full:
            return ratios | {g.name: shape[g.name] * factor for g in remaining}
        for group in full:
            ratios[group.name] = most_of(group, cap)
            budget -= ratios[group.name] * group.params
        remaining = [g for g in remaining if g not in full]
    return ratios


def _scaled(groups: Sequence[Group], exact: dict[str, float], budget: float) -> dict[str, float]:
    """Scale the removals to spend the budget; groups that reach their limit pass the rest on to the others."""
    result, open_groups = {}, list(groups)
    while open_groups:
        weight = sum(exact[g.name] * g.unit_params for g in open_groups)
        if weight <= 0:
            # Nothing was to be removed here, yet heads left a remainder: spread it evenly.
            exact = {g.name: float(g.units) for g in open_groups}
            weight = sum(g.params for g in open_groups)
        factor = max(0.0, budget) / weight
        full = [g for g in open_groups if exact[g.name] * factor > g.units - 1]
        if not full:
            return result | {g.name: exact[g.name] * factor for g in open_groups}
        for group in full:
            result[group.name] = float(group.units - 1)
            budget -= result[group.name] * group.unit_params
        open_groups = [g for g in open_groups if g not in full]
    return result


def _largest_remainders(
    groups: Sequence[Group], exact: dict[str, float], multiple: int, scores: Scores
) -> dict[str, int]:
    """Whole counts whose kept widths are multiples and whose total is the nearest to the exact total."""
    kept = {g.name: max(multiple, _ceil(g.units - exact[g.name], multiple)) for g in groups}
    kept = {g.name: min(kept[g.name], g.units) for g in groups}
    excess = sum((kept[g.name] - (g.units - exact[g.name])) * g.unit_params for g in groups)

    def urgency(group: Group) -> tuple[float, float]:
        remainder = kept[group.name] - (group.units - exact[group.name])
        ordered = scores.groups[group.name].sort().values
        return -round(remainder, 6), float(ordered[min(group.units - kept[group.name], group.units - 1)])

    for group in sorted(groups, key=urgency):
        step = kept[group.name] - _floor(kept[group.name] - 1, multiple)
        if kept[group.name] - step < max(1, multiple) or excess < step * group.unit_params / 2:
            continue
        kept[group.name] -= step
        excess -= step * group.unit_params
    return {g.name: g.units - kept[g.name] for g in groups}


def _floor(value: float, multiple: int) -> int:
    return int(value // multiple) * multiple


def _ceil(value: float, multiple: int) -> int:
    # A hair of slack: 3 - 0.6 * 5 is not a reason to round up.
    return -int(-(value - 1e-6) // multiple) * multiple
