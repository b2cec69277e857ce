"""Statistics and weights -> Scores: one float32 vector per group, one entry a unit; the smallest go first."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneengine.fusion import FUSIONS, Blend, HyWIA, fuse, needs_of
from pruneengine.metrics import MemberView, get_metric
from pruneengine.statistics import Statistics
from pruneengine.structure import KINDS, Group, Member, Structure, find_groups, get_linear

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
        blend: of a fused method: what was blended, and how.
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
        structure: its structure, when it is at hand.
        kinds: what will be pruned; without "layers", groups of other kinds are left out.
        layers: score these decoder layers only.
        metric: a name from :data:`pruneengine.metrics.METRICS` or :data:`pruneengine.fusion.FUSIONS`.
        statistics: what :func:`calibrate` collected; not needed for random and magnitude.
        aggregate: sum, mean, prod, max, first (the root) or last (o_proj, down_proj). Products are scaled by one
            common factor, the largest score of the model, because float32 cannot hold them.
        fold: "gqa" adds up the query heads that are really removed with a KV head; "llm-pruner" reproduces the
            misaligned fold of LLM-Pruner's GQA script, for comparison only.
        seed: of the random metric.
        hywia: how "hywia" blends; by default as :class:`pruneengine.fusion.HyWIA` says.

    Raises:
        ValueError: unknown names, statistics that lack what the metric needs, weights that are not finite.
    """
    needs = needs_of(metric)
    if aggregate not in AGGREGATES:
        raise ValueError(f"unknown aggregate {aggregate!r}; choose from {', '.join(AGGREGATES)}")
    if fold not in FOLDS:
        raise ValueError(f"unknown fold {fold!r}; choose from {', '.join(FOLDS)}")
    structure = structure or find_groups(model)
    if missing := needs - (statistics.tensors.keys() if statistics else set()):
        raise ValueError(f"method {metric!r} needs the quantity {sorted(missing)[0]!r}, which was not collected")
    chosen_groups = structure.scored(kinds, range(structure.num_layers) if layers is None else layers)
    if metric in FUSIONS:
        options = {"structure": structure, "kinds": kinds, "layers": layers, "aggregate": aggregate, "fold": fold}
        parts = (FUSIONS[metric].coarse, FUSIONS[metric].fine)
        coarse, fine = (score(model, part, statistics, seed=seed, **options).groups for part in parts)
        groups, blend = fuse(coarse, fine, chosen_groups, structure.num_layers, hywia or HyWIA())
        return _scores(metric, aggregate, groups, structure, blend)
    chosen = get_metric(metric)
    groups: dict[str, Tensor] = {}
    for group in chosen_groups:
        views = (MemberView(m, get_linear(model, m.module).weight.detach(), statistics, seed) for m in group.members)
        vectors = [(view.member, vector) for view in views if (vector := chosen.of(view)) is not None]
        folded = torch.stack([_fold(vector.double().cpu(), m, group, fold) for m, vector in vectors])
        groups[group.name] = AGGREGATES[aggregate](folded).view(group.units, group.root_width).sum(1)
        if not bool(torch.isfinite(groups[group.name]).all()):
            raise ValueError(f"scores of {group.name} are not finite: NaN or infinity in its weights or statistics")
    if aggregate == "prod":
        largest = max(float(values.max()) for values in groups.values())
        groups = {name: values / (largest or 1.0) for name, values in groups.items()}
    return _scores(metric, aggregate, groups, structure)


def _scores(
    metric: str, aggregate: str, groups: dict[str, Tensor], structure: Structure, blend: Blend | None = None
) -> Scores:
    sums = torch.zeros(structure.num_layers, dtype=torch.float64)
    for name, values in groups.items():
        sums[structure.by_name[name].layer] += values.sum()
    return Scores(metric, aggregate, {name: values.float() for name, values in groups.items()}, sums.float(), blend)


def _fold(vector: Tensor, member: Member, group: Group, fold: str) -> Tensor:
    """``[units * member.width]`` -> ``[units * root_width]``: query heads summed onto their KV head, row by row."""
    repeats = member.width // group.root_width
    if repeats == 1:
        return vector
    if fold == "llm-pruner":
        return vector.view(repeats, -1).sum(0)
    return vector.view(group.units, repeats, group.root_width).sum(1).reshape(-1)
