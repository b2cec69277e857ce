"""Planner of candidates: look up statistics, score, allocate and plan in milliseconds, without a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.evaluation.perplexity import kv_cache_bytes
from pruneengine.model import Structure
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.objective import MaskedPlan
from pruneengine.search.adapruner.pool import Pool
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.kv_groups import uniform_ratios
from pruneengine.structured.compensate import channel_means
from pruneengine.structured.plan import Plan, make_plan
from pruneengine.structured.scores.metric_family import score_point
from pruneengine.structured.scores.score import Scores
from pruneengine.structured.scores.weight_sums import WeightSums


@dataclass
class CandidatePlanner:
    """Planner of candidates for one model, pool and target."""

    model: nn.Module
    structure: Structure
    pool: Pool
    config: AdaPrunerConfig
    _sums: WeightSums = field(init=False)

    def __post_init__(self) -> None:
        self._sums = WeightSums(self.model)

    def plan(self, candidate: Candidate) -> MaskedPlan:
        """Return the plan of a candidate, and the values of its removed channels.

        Raises:
            ValueError: no legal plan meets the target under this candidate.
        """
        config = self.config
        layers = config.layer_range(self.structure.num_layers)
        statistics = self.pool.statistics(candidate.subset)
        scores = score_point(
            self.model, candidate.metric, statistics,
            structure=self.structure, kinds=config.kinds, layers=layers, cache=self._sums,
        )  # fmt: skip
        plan = self.whole_units(scores, self._ratios(candidate, scores), config.shape)
        return MaskedPlan(plan, self._means(plan, statistics) if candidate.fill == "mean" else {})

    def kv_bytes(self, plan: Plan) -> int:
        """Return the bytes by which the cache of keys and values grows per token under a plan, in the model's dtype."""
        return kv_cache_bytes(self.structure, next(self.model.parameters()).element_size(), plan)

    def whole_units(self, scores: Scores, ratios: dict[str, float], shape: str) -> Plan:
        """Return the plan that removes whole units by their scores and meets the target."""
        kinds, round_to = self.config.kinds, self.config.round_to
        return make_plan(self.structure, scores, ratios, self.config.ratio, kinds=kinds, shape=shape, round_to=round_to)

    def _ratios(self, candidate: Candidate, scores: Scores) -> dict[str, float]:
        config = self.config
        if candidate.curve is None:
            # A candidate has either.
            assert candidate.kv_groups is not None
            return uniform_ratios(self.structure, config.ratio, candidate.kv_groups, config.kinds)
        layers = config.layer_range(self.structure.num_layers)
        return candidate.curve.profile(self.structure, scores, config.ratio, config.kinds, layers)

    def _means(self, plan: Plan, statistics: Statistics) -> dict[str, Tensor]:
        means = channel_means(self.structure, statistics)
        return {name: means[name] for name, kept in plan.keep.items() if len(kept) < plan.units[name]}
