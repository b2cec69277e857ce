"""Blend of a fused method: every group's share of the fine score, and the disagreement of its two scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruneengine.common.errors import InputError
from pruneengine.structured.plan import Plan
from pruneengine.structured.scores.hywia_attention import average_ranks
from pruneengine.structured.scores.score import Scores


@dataclass(frozen=True)
class GroupBlend:
    """The blend of one group.

    Attributes:
        share: mean share of the fine score over the units; low and high: the least and the greatest.
        correlation: Spearman's rank correlation of coarse and fine; NaN where one of them is constant.
        removed: units that the plan removes.
        overlap: fraction of the removed number of units that both scores alone would remove; NaN where none go.
    """

    group: str
    units: int
    share: float
    low: float
    high: float
    correlation: float
    removed: int
    overlap: float


def blends(scores: Scores, plan: Plan) -> list[GroupBlend]:
    """Return a row for every group of which the plan keeps units, in the order of the model.

    Raises:
        ValueError: scores of a method that fuses nothing.
    """
    if scores.blend is None:
        raise InputError(f"method {scores.metric!r} fuses nothing: there is no blend to show")
    rows = []
    for name, share in scores.blend.share.items():
        if name not in plan.keep:
            continue
        coarse, fine = scores.blend.coarse[name], scores.blend.fine[name]
        removed = plan.units[name] - len(plan.keep[name])
        correlation, overlap = rank_correlation(coarse, fine), _overlap(coarse, fine, removed)
        low, high = float(share.min()), float(share.max())
        rows.append(GroupBlend(name, len(share), float(share.mean()), low, high, correlation, removed, overlap))
    return rows


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation of two vectors ``[C]``, equal values at the mean of their ranks."""
    ranks = torch.stack([average_ranks(first), average_ranks(second)])
    centred = ranks - ranks.mean(1, keepdim=True)
    norms = centred.norm(dim=1).prod()
    return float(centred.prod(0).sum() / norms) if norms > 0 else float("nan")


def _overlap(coarse: Tensor, fine: Tensor, removed: int) -> float:
    """Return the fraction of the given number of lowest units that both scores share; NaN for none."""
    if not removed:
        return float("nan")
    lowest = [set(scores.argsort(stable=True)[:removed].tolist()) for scores in (coarse, fine)]
    return len(lowest[0] & lowest[1]) / removed
