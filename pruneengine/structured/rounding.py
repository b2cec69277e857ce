"""Rounding of ratios to whole units, so that the parameter budget is met after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pruneengine.common.budgets import one_step_more
from pruneengine.common.errors import InputError
from pruneengine.model import Group
from pruneengine.structured.budget import scale_counts
from pruneengine.structured.scores.score import Scores


def uniform_counts(
    groups: Sequence[Group], ratios: Mapping[str, float], budget: float, multiple: int
) -> dict[str, int]:
    """Return the same count for every group of a kind: ``{group name: units to remove}``.

    The ratio of a kind is the mean of its groups' ratios. Heads are rounded down (to the nearest if they are pruned
    alone). Channels then take the multiple that brings the sum nearest to the budget. Channels of experts and of an
    MLP beside them each have their own count: they share the budget as the ratios do, and the last makes up for the
    rounding of the others.

    Args:
        groups: the groups that lose units.
        ratios: ratio per group name.
        budget: parameters to remove.
        multiple: channels that stay become a multiple of this.

    Raises:
        ValueError: groups of one kind that differ in width.
    """
    counts: dict[str, int] = {}
    parts = sorted(dict.fromkeys(g.part for g in groups if g.kind != "heads"), key=len)
    for part in ("heads", *parts):
        members = [g for g in groups if g.part == part]
        if not members:
            continue
        units = members[0].units
        if any(g.units != units for g in members):
            raise InputError(
                f"shape 'uniform' needs layers of equal width, but {members[0].name} has {units} units and "
                f"{next(g.name for g in members if g.units != units)} differs; use shape 'per-layer'"
            )
        if part == "heads":
            exact = sum(ratios[g.name] for g in members) / len(members) * units
            # Down, as in LLM-Pruner, where channels can make up for it: a head too many in every layer hurts far more.
            count = int(exact + 1e-9) if len(members) < len(groups) else round(exact)
        else:
            spent = sum(counts[g.name] * g.unit_params for g in groups if g.name in counts)
            share = _share(members, [g for g in groups if g.part in parts and g.name not in counts], ratios)
            count = _to_multiple(units, (budget - spent) * share / sum(g.unit_params for g in members), multiple)
        counts |= {g.name: max(0, min(count, units - 1)) for g in members}
    return counts


def spread_counts(
    groups: Sequence[Group], ratios: Mapping[str, float], budget: float, multiple: int, scores: Scores
) -> dict[str, int]:
    """Return a separate count for every group, by largest remainders, then by the least important unit.

    Heads are rounded first; then a common factor scales the channels so that all together meet the budget.

    Args:
        groups: the groups that lose units.
        ratios: ratio per group name.
        budget: parameters to remove.
        multiple: channels that stay become a multiple of this.
        scores: scores of the units.
    """
    counts: dict[str, int] = {}
    for kind in ("heads", "mlp"):
        members = [g for g in groups if g.kind == kind]
        if not members:
            continue
        exact = {g.name: ratios[g.name] * g.units for g in members}
        if kind == "mlp":
            spent = sum(counts[g.name] * g.unit_params for g in groups if g.name in counts)
            exact = scale_counts(members, exact, budget - spent)
        counts |= _largest_remainders(members, exact, multiple if kind == "mlp" else 1, scores)
    return counts


def _share(some: Sequence[Group], groups: Sequence[Group], ratios: Mapping[str, float]) -> float:
    """Return the fraction that some of the groups give of the parameters that all groups give."""
    total = sum(ratios[g.name] * g.params for g in groups)
    return sum(ratios[g.name] * g.params for g in some) / total if total else len(some) / len(groups)


def _to_multiple(units: int, removed: float, multiple: int) -> int:
    """Return the units to remove so that the legal width nearest to ``units - removed`` stays.

    Legal are the multiples below ``units``, and all of ``units``, whether a multiple or not.
    """
    if removed <= 0:
        return 0
    multiples = [width for width in (_floor(units - removed, multiple), _ceil(units - removed, multiple)) if width > 0]
    widths = [min(width, units) for width in multiples] or [min(multiple, units)]
    return units - min((*widths, units), key=lambda width: (abs(units - removed - width), -width))


def _largest_remainders(
    groups: Sequence[Group], exact: Mapping[str, float], multiple: int, scores: Scores
) -> dict[str, int]:
    """Return whole counts of removed units whose kept widths are multiples and whose total is nearest to the exact one.

    Unlike the plain :func:`pruneengine.common.budgets.largest_remainders`, the steps of a group need not be equal (a
    width that is no multiple has a short first step), and equal remainders go by the score of the next unit.
    """
    kept = {g.name: max(multiple, _ceil(g.units - exact[g.name], multiple)) for g in groups}
    kept = {g.name: min(kept[g.name], g.units) for g in groups}
    excess = sum((kept[g.name] - (g.units - exact[g.name])) * g.unit_params for g in groups)

    def urgency(group: Group) -> tuple[float, float]:
        remainder = kept[group.name] - (group.units - exact[group.name])
        ordered = scores.groups[group.name].sort().values
        return -round(remainder, 6), float(ordered[min(group.units - kept[group.name], group.units - 1)])

    steps = {g.name: kept[g.name] - _floor(kept[g.name] - 1, multiple) for g in groups}
    order = [g.name for g in sorted(groups, key=urgency) if kept[g.name] - steps[g.name] >= multiple]
    for name in one_step_more(order, {g.name: steps[g.name] * g.unit_params for g in groups}, excess):
        kept[name] -= steps[name]
    return {g.name: g.units - kept[g.name] for g in groups}


def _floor(value: float, multiple: int) -> int:
    return int(value // multiple) * multiple


def _ceil(value: float, multiple: int) -> int:
    # A hair of slack: 3 - 0.6 * 5 is not a reason to round up.
    return -int(-(value - 1e-6) // multiple) * multiple
