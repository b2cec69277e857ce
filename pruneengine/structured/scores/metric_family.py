"""Parametrised importance metric; the AdaPruner search moves through its parameters.

The published metrics (LLM-Pruner's four, Wanda, magnitude, energy) are special cases, the points of the family.
A point blends two parts. The Taylor part estimates the change of the loss: per weight ``a = w*g`` (first order) and
``b = w^2*F/2`` (second), summed before the absolute value (coarse) or after it (fine). The activation part is
``|W|^p * n^q``, n the norm of the input channel. The family is ours; its corners are the published metrics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.errors import InputError
from pruneengine.common.validation import from_known, require_choice, require_within
from pruneengine.model import KINDS, Structure, find_groups
from pruneengine.structured.scores.hywia import blend_scores, fixed_share
from pruneengine.structured.scores.metrics import MemberView
from pruneengine.structured.scores.score import AGGREGATES, Scores, as_scores, require_quantities, score_groups
from pruneengine.structured.scores.weight_sums import MOMENTS, WeightSums

# The quantities whose sums stand for the coarse and the fine score. A mixed order of other weights than (1, 1) is
# missing on purpose: |alpha*a - beta*b| does not follow from sums over |a|, |b| and |a - b|, and would need a
# collection of its own for every alpha and beta.
COARSE = {"first": ("signed",), "each": ("signed",), "second": ("signed",), "mix": ("signed", "fisher")}
FINE = {"first": "abs_mean", "each": "abs_each", "second": "fisher", "mix": "mix"}
_TAYLOR_WORDS = {
    "first": "|w*g|",
    "each": "|w*g| of each sample's gradient",
    "second": "w^2*F",
    "mix": "|w*g - w^2*F/2|",
}
_AGGREGATE_WORDS = {
    "sum": "added up over its members",
    "mean": "averaged over its members",
    "prod": "multiplied over its members",
    "max": "the largest of its members",
    "first": "at its first member alone",
    "last": "at its last member alone",
}


@dataclass(frozen=True)
class MetricPoint:
    """One metric of the family.

    Attributes:
        order: of the Taylor part: "first" ``a`` (LLM-Pruner's Element^1), "each" ``a`` of every sample's own gradient,
            averaged after the absolute value, "second" ``2*b`` (Element^2) or "mix" ``a - b``.
        tau: in [0, 1]: ``(1 - tau) * coarse + tau * fine``. Of order "second" the coarse score squares each sample's
            sum of ``a``: the Fisher information of the gate that would close the unit (Kwon et al. 2022).
        weight_power: 1 or 2, the exponent of ``|W|`` in the activation part.
        norm_power: in [0, 2], the exponent of the input channel's norm there; 0 is plain magnitude.
        moment: "second", the norm of x (Wanda), or "variance", of x less its mean over the tokens (FLAP).
        share: in [0, 1], of the activation part. At 0 and 1 the other part is not computed; between, each has unit
            mean within a group, and scales come back as in :func:`pruneengine.structured.scores.hywia.fuse`.
        aggregate: how the members of a group become one (:func:`pruneengine.structured.scores.score.score`).
    """

    order: str = "first"
    tau: float = 1.0
    weight_power: int = 1
    norm_power: float = 1.0
    moment: str = "second"
    share: float = 0.0
    aggregate: str = "sum"

    def __post_init__(self) -> None:
        require_choice("order", self.order, FINE)
        require_choice("moment", self.moment, MOMENTS)
        require_choice("aggregate", self.aggregate, AGGREGATES)
        require_within("tau", self.tau, 0, 1)
        require_within("norm_power", self.norm_power, 0, 2)
        require_within("share", self.share, 0, 1)
        if type(self.weight_power) is not int or self.weight_power not in (1, 2):
            raise InputError(f"weight_power must be 1 or 2, got {self.weight_power!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The quantities of the statistics that the metric reads."""
        needs: set[str] = set()
        if self.share < 1:
            needs.update(COARSE[self.order] if self.tau < 1 else (), (FINE[self.order],) if self.tau > 0 else ())
        if self.share > 0 and self.norm_power > 0:
            needs.update(("squares",) if self.moment == "second" else ("sum", "squares"))
        return frozenset(needs)

    def in_words(self) -> str:
        """Return the metric as one sentence for a report, without parameters that have no effect."""
        parts = [self._taylor_words()] if self.share < 1 else []
        parts += [self._activation_words()] if self.share > 0 else []
        if len(parts) == 2:
            parts = [f"{1 - self.share:.0%} {parts[0]}", f"{self.share:.0%} {parts[1]}"]
        return f"A unit is scored by {' and '.join(parts)}, {_AGGREGATE_WORDS[self.aggregate]}."

    def _taylor_words(self) -> str:
        inner = _TAYLOR_WORDS[self.order]
        if self.tau == 1:
            return f"the sum of {inner}"
        outer = f"the sum of {inner.replace('|', '')} taken absolutely"
        if self.order == "second":
            outer = "the sum of w*g squared, averaged over samples"
        return outer if self.tau == 0 else f"({1 - self.tau:.0%} {outer}, {self.tau:.0%} the sum of {inner})"

    def _activation_words(self) -> str:
        weight = "|W|" if self.weight_power == 1 else "W^2"
        if self.norm_power == 0:
            return f"the sum of {weight}"
        exponent = "" if self.norm_power == 1 else f" to the power {self.norm_power:.3g}"
        what = "root mean square" if self.moment == "second" else "standard deviation"
        return f"the sum of {weight} times the input's {what}{exponent}"

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetricPoint:
        """Read :meth:`to_dict`'s values; ValueError for unknown keys, with the known ones."""
        return from_known(cls, values, "key")


# The metrics of pruneengine.structured.scores.metrics that are points of the family.
SPECIAL_CASES: dict[str, MetricPoint] = {
    "magnitude_l1": MetricPoint(share=1, weight_power=1, norm_power=0),
    "magnitude_l2": MetricPoint(share=1, weight_power=2, norm_power=0),
    "wanda": MetricPoint(share=1, weight_power=1, norm_power=1),
    "energy": MetricPoint(share=1, weight_power=2, norm_power=2, aggregate="last"),
    "vectorize": MetricPoint(order="first", tau=0),
    "param_first": MetricPoint(order="first", tau=1),
    "param_second": MetricPoint(order="second"),
    "param_mix": MetricPoint(order="mix", tau=1),
}


def score_point(
    model: nn.Module,
    point: MetricPoint,
    statistics: Statistics | None = None,
    *,
    structure: Structure | None = None,
    kinds: Collection[str] = KINDS,
    layers: range | None = None,
    cache: WeightSums | None = None,
) -> Scores:
    """Score every unit of every group by a point of the family, as :func:`score` by a name.

    Args:
        model: the dense model.
        point: the metric.
        statistics: with the quantities the point needs; none for plain magnitude.
        structure: the model's structure, if it is at hand.
        kinds: kinds of units to be pruned, as in :func:`pruneengine.structured.scores.score.score`.
        layers: the decoder layers to score; all by default.
        cache: sums of this model's weights, kept from call to call.

    Raises:
        ValueError: statistics that lack a quantity, a cache of another model, or scores that are not finite.
    """
    require_quantities("the metric", point.needs, statistics)
    if cache is not None and cache.model is not model:
        raise InputError(f"cache holds sums of another {type(cache.model).__name__}; expected those of this model")
    structure = structure or find_groups(model)
    groups = structure.scored(kinds, range(structure.num_layers) if layers is None else layers)
    taylor = partial(_taylor, point)
    activation = partial(_activation, point, cache or WeightSums(model))
    parts = [taylor] * (point.share < 1) + [activation] * (point.share > 0)
    scores, *second = [score_groups(model, part, groups, statistics, aggregate=point.aggregate) for part in parts]
    if second:
        shares = {g.name: fixed_share(scores[g.name], second[0][g.name], point.share) for g in groups}
        scores = blend_scores(scores, second[0], shares, groups)
    return as_scores("family", point.aggregate, scores, structure)


def _taylor(point: MetricPoint, view: MemberView) -> Tensor:
    """Return ``(1 - tau) * coarse + tau * fine``; both are sums over rows or columns that the statistics hold."""
    if point.tau == 1:
        return view.mean(FINE[point.order])
    coarse = _coarse(point.order, view)
    return coarse if point.tau == 0 else (1 - point.tau) * coarse + point.tau * view.mean(FINE[point.order])


def _coarse(order: str, view: MemberView) -> Tensor:
    if order in ("each", "second"):
        return view.mean("signed", "|x|" if order == "each" else "x^2")
    signed = view.mean("signed")
    return (signed if order == "first" else signed - view.mean("fisher") / 2).abs()


def _activation(point: MetricPoint, sums: WeightSums, view: MemberView) -> Tensor:
    return sums.of(view, point.weight_power, point.norm_power, point.moment)
