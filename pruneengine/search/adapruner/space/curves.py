"""Allocation curves of a few smooth parameters: a curve over depth, and the weight of scores beside it.

The curve is ours. It has no parameter per layer: the losses of single layers do not add up, and a sampler would fit
thirty numbers to noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruneengine.common.errors import InputError
from pruneengine.common.validation import from_known, require_choice, require_whole, require_within
from pruneengine.model import Group, Structure
from pruneengine.search.adapruner.space.kv_groups import CAP, available, budget_of, width_kinds
from pruneengine.structured.budget import rank_to_budget, scale_to_budget
from pruneengine.structured.scores.score import Scores

_MIDDLES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": Tensor.mean,
    "trimmed": lambda scores: scores.sort().values[: len(scores) - len(scores) // 20].mean(),
    "median": Tensor.median,
}
NORMALISATIONS = ("none", *_MIDDLES)


@dataclass(frozen=True)
class Curve:
    """Spread of a target over the groups of a per-layer plan.

    ``Curve()`` is the uniform allocation. Depth runs from x = -1, the first layer that may be touched, to x = 1.

    Attributes:
        slope: in [-1, 1]: ratios are proportional to ``1 + slope * x``; at 1 the last layer gives most, the first none.
        bend: in [-1, 1]: ratios are also proportional to ``1 + bend * (2 x^2 - 1)``; at 1 the ends give most, the
            middle none.
        first, last: numbers of layers at either end that give nothing.
        adapt: in [0, 1], from the curve alone to the share that one ranking of all units by score takes of each group.
        normalise: divisor of a group's scores before that ranking. "none": their parameters, as
            ``allocation="global"``; a few layers with massive activations then decide. "mean": of the group, where a
            few massive units decide. "trimmed": the mean without the largest twentieth. "median": least sensitive,
            but blind at a ratio near a half, where all groups give the half below their medians.
        heads: in [0, 2], a factor on the ratios of heads against those of channels; at 0 heads stay.
    """

    slope: float = 0.0
    bend: float = 0.0
    first: int = 0
    last: int = 0
    adapt: float = 0.0
    normalise: str = "trimmed"
    heads: float = 1.0

    def __post_init__(self) -> None:
        for name, least, most in (("slope", -1, 1), ("bend", -1, 1), ("adapt", 0, 1), ("heads", 0, 2)):
            require_within(name, getattr(self, name), least, most)
        require_whole("first", self.first)
        require_whole("last", self.last)
        require_choice("normalise", self.normalise, NORMALISATIONS)

    def profile(
        self,
        structure: Structure,
        scores: Scores,
        ratio: float,
        kinds: Iterable[str] = ("heads", "mlp"),
        layers: range | None = None,
    ) -> dict[str, float]:
        """Return the ratio of every group, for :func:`pruneengine.structured.plan.make_plan` with shape "per-layer".

        Args:
            structure: the model's structure.
            scores: scores of its units; read where ``adapt`` is above 0.
            ratio: fraction of the prunable parameters of ``kinds`` over the whole model, in (0, 1).
            kinds: "heads", "mlp" or both.
            layers: the decoder layers that may be touched; all by default.

        Returns:
            ``{group name: ratio}`` of the groups that may give. They meet the target exactly before units are rounded;
            no ratio is above 0.9, and every group keeps a unit.

        Raises:
            ValueError: other kinds, or a target that the open groups cannot give; the message names them.
        """
        kinds = width_kinds(kinds)
        budget = budget_of(structure, ratio, kinds)
        layers = range(structure.num_layers) if layers is None else layers
        groups = self._open_groups(structure, kinds, layers)
        if budget > available(groups):
            raise InputError(
                f"ratio {ratio:g} is out of reach: {', '.join(kinds)} in layers {layers.start}:{layers.stop} less "
                f"{self.first} first and {self.last} last, with heads {self.heads:g} and at most {CAP:g} of a group, "
                f"can give at most {available(groups) / structure.prunable_params(kinds):.3f}"
            )
        shares = {g.name: self.at(_depth(g.layer, layers)) for g in groups}
        if self.adapt:
            densities = {g.name: _densities(scores.groups[g.name], g, self.normalise) for g in groups}
            parts = (shares, rank_to_budget(groups, densities, budget))
            curve, ranked = (scale_to_budget(groups, part, budget, CAP) for part in parts)
            shares = {name: (1 - self.adapt) * curve[name] + self.adapt * ranked[name] for name in curve}
        factors = {g.name: self.heads if g.kind == "heads" else 1.0 for g in groups}
        return scale_to_budget(groups, {name: share * factors[name] for name, share in shares.items()}, budget, CAP)

    def at(self, x: float) -> float:
        """Return the curve at depth x in [-1, 1], before it is scaled to a target; a product that is never negative."""
        return (1 + self.slope * x) * (1 + self.bend * (2 * x * x - 1))

    def in_words(self) -> str:
        """Return a sentence for a report."""
        shape = "alike in all layers" if not (self.slope or self.bend) else "along a curve over depth"
        if self.slope or self.bend:
            shape += f" (slope {self.slope:+.2f}, bend {self.bend:+.2f})"
        ends = f", {self.first} first and {self.last} last layers left alone" if self.first or self.last else ""
        follow = f", {self.adapt:.0%} by a ranking of scores ({self.normalise})" if self.adapt else ""
        heads = "heads stay" if self.heads == 0 else f"heads at {self.heads:.2g} times the channels' ratio"
        return f"ratios {shape}{ends}{follow}; {heads}"

    def _open_groups(self, structure: Structure, kinds: tuple[str, ...], layers: range) -> tuple[Group, ...]:
        kinds = tuple(k for k in kinds if k != "heads" or self.heads > 0)
        return structure.of_kind(kinds, layers[self.first : max(self.first, len(layers) - self.last)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Curve:
        """Return the curve of :meth:`to_dict`'s values; raise ValueError for unknown keys, with the known ones."""
        return from_known(cls, values, "key")


def _depth(layer: int, layers: range) -> float:
    return 2 * (layer - layers.start) / (len(layers) - 1) - 1 if len(layers) > 1 else 0.0


def _densities(scores: Tensor, group: Group, normalise: str) -> Tensor:
    """Return scores per parameter: float64 ``[units]``; the group's own scale drops out but for "none"."""
    scores = scores.double()
    if normalise == "none":
        return scores / group.unit_params
    # Where most units are worth nothing the median is 0, and tells nothing of the others.
    middle = _MIDDLES[normalise](scores) or scores.mean()
    return scores / middle if middle > 0 else torch.zeros_like(scores)
