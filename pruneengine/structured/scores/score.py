"""Scores of units from statistics and weights: one float32 vector per group; units with the smallest go first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.errors import InputError
from pruneengine.model import KINDS, Group, Member, Structure, find_groups, get_linear
from pruneengine.model.checks import check_prunable
from pruneengine.structured.scores.hywia import FUSIONS, Blend, HyWIA, fuse, needs_of
from pruneengine.structured.scores.metrics import MemberView, MetricFunction, get_metric

# LLM-Pruner's --grouping_strategy: how the members' vectors, stacked [members, C], become one.
AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda stacked: stacked.sum(0),
    "mean": lambda stacked: stacked.mean(0),
    "prod": lambda stacked: stacked.prod(0),
    "max": lambda stacked: stacked.amax(0),
    "first": lambda stacked: stacked[0],
    "last": lambda stacked: stacked[-1],
}
FOLDS = ("gqa", "llm-pruner")


@dataclass(frozen=True)
class Scores:
    """Importance of units; only ratios of scores mean anything.

    Attributes:
        groups: float32 ``[units]`` per group name.
        layers: float32 ``[num_layers]``, the sums over a layer's groups.
        blend: the two scores that a fused method blended, and their shares; None for other methods.
    """

    metric: str
    aggregate: str
    groups: dict[str, Tensor]
    layers: Tensor
    blend: Blend | None = None


def score(
    model: nn.Module,
    metric: str,
    statistics: Statistics | None = None,
    *,
    structure: Structure | None = None,
    kinds: Collection[str] = KINDS,
    layers: range | None = None,
    aggregate: str = "sum",
    fold: str = "gqa",
    seed: int = 0,
    hywia: HyWIA | None = None,
) -> Scores:
    """Score every unit of every group.

    Per member the metric gives a vector over rows or columns; query rows are folded onto their KV head's rows, the
    members are aggregated at the root's resolution, and the rows of a head are summed (LLM-Pruner, methods 1.3).
    A decoder layer's score is the sum over its units (block-wise Taylor as in Shortened LLaMA, Kim et al. 2024).

    Args:
        model: the dense model.
        structure: the model's structure, if it is at hand.
        kinds: kinds of units to be pruned; without "layers", groups of other kinds are left out.
        layers: the decoder layers to score; all by default.
        metric: a name from :data:`METRICS` or :data:`FUSIONS`.
        statistics: as returned by :func:`calibrate`; not needed for random and magnitude.
        aggregate: sum, mean, prod, max, first (the root) or last (o_proj, down_proj). Products are scaled by one
            common factor, the largest score of the model, because float32 cannot hold them.
        fold: "gqa" adds up the query heads that are really removed with a KV head; "llm-pruner" reproduces the
            misaligned fold of LLM-Pruner's GQA script, for comparison only.
        seed: random seed of the random metric.
        hywia: options of "hywia"; the defaults of :class:`pruneengine.structured.scores.hywia.HyWIA` if None.

    Raises:
        ValueError: unknown names, statistics that lack what the metric needs, weights that are not finite.
    """
    needs = needs_of(metric)
    if aggregate not in AGGREGATES:
        raise InputError(f"unknown aggregate {aggregate!r}; choose from {', '.join(AGGREGATES)}")
    if fold not in FOLDS:
        raise InputError(f"unknown fold {fold!r}; choose from {', '.join(FOLDS)}")
    structure = structure or find_groups(model)
    require_quantities(f"method {metric!r}", needs, statistics)
    check_prunable(model)
    chosen_groups = structure.scored(kinds, range(structure.num_layers) if layers is None else layers)
    if metric in FUSIONS:
        parts = (FUSIONS[metric].coarse, FUSIONS[metric].fine)
        coarse, fine = (
            score(
                model, part, statistics,
                structure=structure, kinds=kinds, layers=layers, aggregate=aggregate, fold=fold, seed=seed,
            ).groups
            for part in parts
        )  # fmt: skip
        groups, blend = fuse(coarse, fine, chosen_groups, structure.num_layers, hywia or HyWIA())
        return as_scores(metric, aggregate, groups, structure, blend)
    of = get_metric(metric).of
    groups = score_groups(model, of, chosen_groups, statistics, aggregate=aggregate, fold=fold, seed=seed)
    return as_scores(metric, aggregate, groups, structure)


def require_quantities(what: str, needs: Collection[str], statistics: Statistics | None) -> None:
    """Raise ValueError if statistics lack a quantity; the message says that ``what`` needs it."""
    if missing := set(needs) - (statistics.tensors.keys() if statistics else set()):
        raise InputError(f"{what} needs the quantity {min(missing)!r}, which was not collected")


def score_groups(
    model: nn.Module,
    of: MetricFunction,
    groups: Sequence[Group],
    statistics: Statistics | None = None,
    *,
    aggregate: str = "sum",
    fold: str = "gqa",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score units by any function of a member, as :func:`score` does by a metric's name.

    Args:
        model: the dense model.
        of: returns a vector over a member's rows or columns, or None where the member takes no part. Where
            ``aggregate`` is "first" or "last" it is called only for the member that counts.
        groups: the groups to score.
        statistics: handed to ``of`` with every member.
        aggregate: a name from :data:`AGGREGATES`.
        fold: a name from :data:`FOLDS`.
        seed: handed to ``of`` with every member.

    Returns:
        float64 ``[units]`` per group name.

    Raises:
        ValueError: scores that are not finite; the message names the group.
    """
    scores: dict[str, Tensor] = {}
    for group in groups:
        members = reversed(group.members) if aggregate == "last" else group.members
        views = (
            MemberView(m, m.select(get_linear(model, m.module).weight.detach()), statistics, seed) for m in members
        )
        taking_part = ((view.member, vector) for view in views if (vector := of(view)) is not None)
        vectors = islice(taking_part, 1 if aggregate in ("first", "last") else None)
        folded = torch.stack([_fold(vector.double().cpu(), member, group, fold) for member, vector in vectors])
        scores[group.name] = AGGREGATES[aggregate](folded).view(group.units, group.root_width).sum(1)
        if not bool(torch.isfinite(scores[group.name]).all()):
            raise InputError(f"scores of {group.name} are not finite: NaN or infinity in its weights or statistics")
    if aggregate == "prod":
        largest = max(float(values.max()) for values in scores.values())
        scores = {name: values / (largest or 1.0) for name, values in scores.items()}
    return scores


def as_scores(
    metric: str, aggregate: str, groups: dict[str, Tensor], structure: Structure, blend: Blend | None = None
) -> Scores:
    """Return float64 scores per group name as :class:`Scores`: in float32, with the sums over each layer."""
    sums = torch.zeros(structure.num_layers, dtype=torch.float64)
    for name, values in groups.items():
        sums[structure.by_name[name].layer] += values.sum()
    return Scores(metric, aggregate, {name: values.float() for name, values in groups.items()}, sums.float(), blend)


def _fold(vector: Tensor, member: Member, group: Group, fold: str) -> Tensor:
    """Sum query heads onto their KV head, row by row: ``[units * member.width]`` -> ``[units * root_width]``."""
    repeats = member.width // group.root_width
    if repeats == 1:
        return vector
    if fold == "llm-pruner":
        return vector.view(repeats, -1).sum(0)
    return vector.view(group.units, repeats, group.root_width).sum(1).reshape(-1)
