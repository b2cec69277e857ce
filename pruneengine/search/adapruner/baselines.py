"""Baselines of a search: fixed metrics under the same target and shape, on all of the pool and the same blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pruneengine.common.progress import track
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.search.adapruner.planner import CandidatePlanner
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.curves import Curve
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.early_stop import mean
from pruneengine.search.study import BASELINE
from pruneengine.structured.allocate import allocate
from pruneengine.structured.scores.metric_family import SPECIAL_CASES
from pruneengine.structured.scores.score import score

if TYPE_CHECKING:
    import optuna

# Allocations of per-layer plans. "protected" leaves the first 4 and last 2 layers alone, as LLM-Pruner's scripts do.
BASELINE_ALLOCATIONS = ("uniform", "global", "protected")
# Number of the best baselines that are measured on the held-out blocks.
HELD_OUT_BASELINES = 3


@dataclass(frozen=True)
class Baseline:
    """A fixed metric with a fixed allocation.

    Attributes:
        method: a name of :data:`pruneengine.structured.scores.metrics.METRICS`.
        allocation: "uniform", "global" (one ranking by score per parameter) or "protected".
        losses: loss above the dense model's of every search block, nats; none where no legal plan exists.
        held_out: mean loss above the dense model's on the held-out blocks; None where it was not measured.
        reached: fraction of the prunable parameters that its plan removes.
        mask: digest of its plan.
        kv_bytes: bytes by which the cache of keys and values grows per token, in the model's dtype.
        illegal: reason why no plan meets the target; None where one does.
    """

    method: str
    allocation: str
    losses: tuple[float, ...] = ()
    held_out: float | None = None
    reached: float | None = None
    mask: str = ""
    illegal: str | None = None
    kv_bytes: int | None = None

    @property
    def name(self) -> str:
        """Metric, and the allocation where it is not uniform."""
        return self.method if self.allocation == "uniform" else f"{self.method}, {self.allocation}"

    @property
    def value(self) -> float | None:
        """Mean loss above the dense model's on the search blocks, nats."""
        return mean(self.losses) if self.losses else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a report."""
        return {"name": self.name, "value": self.value} | {k: v for k, v in asdict(self).items() if k != "losses"}


def baselines(config: AdaPrunerConfig) -> list[Baseline]:
    """Return all baselines of a shape. A uniform plan is a per-layer plan too, so it competes there."""
    allocations = BASELINE_ALLOCATIONS if config.shape == "per-layer" else BASELINE_ALLOCATIONS[:1]
    return [Baseline(method, allocation) for allocation in allocations for method in config.baselines]


def evaluate(
    study: optuna.Study, planner: CandidatePlanner, objective: Objective, held_out: Objective
) -> list[Baseline]:
    """Evaluate every baseline on all search blocks, and the best :data:`HELD_OUT_BASELINES` on the held-out blocks too.

    Losses that an earlier run computed are read from the study.
    """
    evaluated = []
    for baseline in track(baselines(planner.config), "baselines"):
        known = _known(study, baseline)
        evaluated.append(known or _keep(study, _evaluated(baseline, planner, objective)))
    for best in by_loss(evaluated)[:HELD_OUT_BASELINES]:
        if best.held_out is None:
            loss = held_out.evaluate([masked(best, planner)])[0].mean
            evaluated[evaluated.index(best)] = _keep(study, replace(best, held_out=loss))
    return evaluated


def by_loss(evaluated: Iterable[Baseline]) -> list[Baseline]:
    """Return the baselines that have a legal plan, lowest mean loss first."""
    return sorted((baseline for baseline in evaluated if baseline.losses), key=lambda baseline: mean(baseline.losses))


def masked(baseline: Baseline, planner: CandidatePlanner) -> MaskedPlan:
    """Return the plan of a baseline.

    Raises:
        ValueError: no legal plan meets the target.
    """
    config, structure = planner.config, planner.structure
    layers = config.layer_range(structure.num_layers)
    # The pool holds statistics of these layers alone.
    scores = score(
        planner.model, baseline.method, planner.pool.statistics(planner.pool.largest),
        structure=structure, kinds=config.kinds, layers=layers, seed=config.seed,
    )  # fmt: skip
    if baseline.allocation == "protected":
        layers = range(max(layers.start, 4), min(layers.stop, structure.num_layers - 2))
    allocation = "global" if baseline.allocation == "global" else "uniform"
    ratios = allocate(structure, scores, config.ratio, kinds=config.kinds, allocation=allocation, layers=layers)
    whole = len(layers) == structure.num_layers
    return MaskedPlan(
        planner.whole_units(scores, ratios, "uniform" if whole and allocation == "uniform" else "per-layer")
    )


def starts(planner: CandidatePlanner, space: Space) -> list[Candidate]:
    """Return the points of the space that the sampler learns from first.

    For uniform plans these are the baselines that the metric family contains: their masks are known by then. For
    per-layer plans these are three of the baselines' metrics under three plain curves, as far as they meet the target:
    uniform, with the ends protected, and following the scores.
    """
    subset = planner.pool.largest
    points = [SPECIAL_CASES[name] for name in planner.config.baselines if name in SPECIAL_CASES]
    if space.kv_groups:
        kv_groups = space.default_kv_groups(planner.config.ratio, planner.structure)
        return [Candidate(subset, point, kv_groups=kv_groups) for point in points]
    heads = 0.0 if set(planner.config.kinds) >= {"heads", "mlp"} else 1.0
    first, last = (2, 1) if space.layers > 6 else (0, 0)
    protected = Curve(heads=heads, first=first, last=last)
    curves = (Curve(heads=heads), protected, replace(protected, adapt=1.0))
    points = [SPECIAL_CASES[name] for name in ("energy", "wanda", "param_second")]
    candidates = [Candidate(subset, point, curve) for point in points for curve in curves]
    return [candidate for candidate in candidates if _legal(candidate, planner)]


def _known(study: optuna.Study, baseline: Baseline) -> Baseline | None:
    values = study.user_attrs.get(BASELINE + baseline.name)
    return Baseline(**values | {"losses": tuple(values["losses"])}) if values else None


def _keep(study: optuna.Study, baseline: Baseline) -> Baseline:
    study.set_user_attr(BASELINE + baseline.name, asdict(baseline))
    return baseline


def _evaluated(baseline: Baseline, planner: CandidatePlanner, objective: Objective) -> Baseline:
    try:
        candidate = masked(baseline, planner)
    except ValueError as reason:
        return replace(baseline, illegal=str(reason))
    losses = tuple(objective.evaluate([candidate])[0].losses.tolist())
    return replace(
        baseline, losses=losses, reached=candidate.plan.reached, mask=candidate.digest,
        kv_bytes=planner.kv_bytes(candidate.plan),
    )  # fmt: skip


def _legal(candidate: Candidate, planner: CandidatePlanner) -> bool:
    try:
        planner.plan(candidate)
    except ValueError:
        return False
    return True
