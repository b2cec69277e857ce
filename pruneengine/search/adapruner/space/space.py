"""Search space in Optuna's terms: suggestions of a trial to a candidate, and a candidate to its parameters.

Conditional parameters are suggested only where they have an effect, so that the sampler never learns from noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pruneengine.model import Structure
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.curves import NORMALISATIONS, Curve
from pruneengine.search.adapruner.space.subsets import Subset
from pruneengine.structured.scores.metric_family import FINE, MetricPoint
from pruneengine.structured.scores.score import AGGREGATES
from pruneengine.structured.scores.weight_sums import MOMENTS

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")
PARTS = ("activation", "taylor", "both")
MOST_PROTECTED_FIRST, MOST_PROTECTED_LAST = 4, 3
SHARES = (0.05, 0.95)


@dataclass(frozen=True)
class Space:
    """Choices of a search.

    Attributes:
        menu: the subsets of the calibration pool.
        kv_groups: the numbers of KV groups that a uniform plan may remove from every layer; empty for per-layer plans.
        heads: whether heads are pruned at all.
        layers: number of layers that may change.
        fills: values that removed channels may turn into.
    """

    menu: tuple[Subset, ...]
    kv_groups: tuple[int, ...]
    heads: bool
    layers: int
    fills: tuple[str, ...] = ("zero",)

    def suggest(self, trial: optuna.trial.BaseTrial) -> Candidate:
        """Draw a candidate."""
        return Candidate(
            subset=self._subset(trial),
            metric=self._metric(trial),
            curve=None if self.kv_groups else self._curve(trial),
            kv_groups=_one_of(trial, "kv groups", self.kv_groups) if self.kv_groups else None,
            fill=_one_of(trial, "fill", self.fills),
        )

    def params(self, candidate: Candidate) -> dict[str, Any]:
        """Return the suggestions that give this candidate."""
        subset, metric, curve = candidate.subset, candidate.metric, candidate.curve
        part = {0.0: "taylor", 1.0: "activation"}.get(metric.share, "both")
        params: dict[str, Any] = {"length": subset.length, "source": subset.source, "samples": subset.count}
        params |= {"selector": subset.selector, "part": part, "aggregate": metric.aggregate, "fill": candidate.fill}
        if part != "activation":
            params |= {"order": metric.order, "tau": metric.tau}
        if part != "taylor":
            params |= {"weight power": metric.weight_power, "norm power": metric.norm_power, "moment": metric.moment}
        if part == "both":
            params["share"] = metric.share
        if curve is None:
            return params | {"kv groups": candidate.kv_groups}
        params |= {"slope": curve.slope, "bend": curve.bend, "first": curve.first, "last": curve.last}
        return params | {"adapt": curve.adapt, "normalise": curve.normalise, "heads": curve.heads}

    def default_kv_groups(self, ratio: float, structure: Structure) -> int:
        """Return the number of KV groups that a prune without a search removes: the ratio's share, rounded down."""
        units = structure.of_kind(("heads",))[0].units if self.heads else 0
        return min(self.kv_groups, key=lambda k: (abs(k - int(ratio * units + 1e-9)), k))

    def _subset(self, trial: optuna.trial.BaseTrial) -> Subset:
        length = _one_of(trial, "length", _distinct(s.length for s in self.menu))
        source = _one_of(trial, "source", _distinct(s.source for s in self.menu))
        fitting = [s for s in self.menu if (s.length, s.source) == (length, source)]
        # The counts of all sources: a distribution must not change from trial to trial.
        count = _one_of(trial, "samples", _distinct(s.count for s in self.menu))
        count = min({s.count for s in fitting}, key=lambda c: (abs(c - count), c))
        fitting = [s for s in fitting if s.count == count]
        selector = fitting[0].selector
        if len(fitting) > 1:
            selector = _one_of(trial, "selector", _distinct(s.selector for s in self.menu))
        return next((s for s in fitting if s.selector == selector), fitting[0])

    def _metric(self, trial: optuna.trial.BaseTrial) -> MetricPoint:
        values: dict[str, Any] = {"aggregate": trial.suggest_categorical("aggregate", tuple(AGGREGATES))}
        part = trial.suggest_categorical("part", PARTS)
        if part != "activation":
            values["order"] = trial.suggest_categorical("order", tuple(FINE))
            values["tau"] = trial.suggest_float("tau", 0, 1)
        if part != "taylor":
            values["weight_power"] = trial.suggest_int("weight power", 1, 2)
            values["norm_power"] = trial.suggest_float("norm power", 0, 2)
            values["moment"] = trial.suggest_categorical("moment", MOMENTS)
        if part == "both":
            values["share"] = trial.suggest_float("share", *SHARES)
        else:
            values["share"] = float(part == "activation")
        return MetricPoint(**values)

    def _curve(self, trial: optuna.trial.BaseTrial) -> Curve:
        most = max(0, self.layers - 2)
        return Curve(
            slope=trial.suggest_float("slope", -1, 1),
            bend=trial.suggest_float("bend", -1, 1),
            first=trial.suggest_int("first", 0, min(MOST_PROTECTED_FIRST, most)),
            last=trial.suggest_int("last", 0, min(MOST_PROTECTED_LAST, most)),
            adapt=trial.suggest_float("adapt", 0, 1),
            normalise=trial.suggest_categorical("normalise", NORMALISATIONS),
            heads=trial.suggest_float("heads", 0, 1.5) if self.heads else 1.0,
        )


def _one_of(trial: optuna.trial.BaseTrial, name: str, choices: Sequence[Any]) -> Any:
    """Return a suggestion where there is a choice, the only value otherwise."""
    return trial.suggest_categorical(name, choices) if len(choices) > 1 else choices[0]


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))
