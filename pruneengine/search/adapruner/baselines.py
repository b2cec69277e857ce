"""The fixed metrics that a search must beat: same target, same shape, all of the pool, the same blocks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pruneengine.common.progress import track
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.decide import CandidatePlanner
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.curves import Curve
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.study import BASELINE
from pruneengine.structured.allocate import allocate
from pruneengine.structured.scores.metric_family import SPECIAL_CASES
from pruneengine.structured.scores.score import score

if TYPE_CHECKING:
    import optuna

# Of per-layer plans. "protected" leaves the first 4 and last 2 layers alone, as LLM-Pruner's scripts do.
ALLOCATIONS = ("uniform", "global", "protected")
# So many of the best are measured on the held-out blocks.
HELD_OUT = 3


@dataclass(frozen=True)
class Baseline:
    """A fixed metric with a fixed allocation.

    Attributes:
        method: a name of :data:`pruneengine.structured.scores.metrics.METRICS`.
        allocation: "uniform", "global" (one ranking by score per parameter) or "protected".
        losses: above the dense model's, of every search block, nats; none where no legal plan exists.
        held_out: mean loss above the dense model's on the held-out blocks; None where it was not measured.
        reached: fraction of the prunable parameters that its plan removes.
        mask: digest of its plan.
        kv_bytes: as of a trial.
        illegal: why no plan meets the target.
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
        return self.method if self.allocation == "uniform" else f"{self.method}, {self.allocation}"

    @property
    def value(self) -> float | None:
        """Mean loss above the dense model's on the search blocks, nats."""
        return sum(self.losses) / len(self.losses) if self.losses else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a report."""
        return {"name": self.name, "value": self.value} | {k: v for k, v in asdict(self).items() if k != "losses"}


def baselines(config: AdaPrunerConfig) -> list[Baseline]:
    """All of them for a shape. A uniform plan is a per-layer plan too, so it competes there."""
    allocations = ALLOCATIONS if config.shape == "per-layer" else ALLOCATIONS[:1]
    return [Baseline(method, allocation) for allocation in allocations for method in config.baselines]


def evaluate(
    study: optuna.Study, decider: CandidatePlanner, objective: Objective, held_out: Objective
) -> list[Baseline]:
    """Evaluate every baseline on all search blocks, and the best :data:`HELD_OUT` on the held-out blocks too.

    What an earlier run of the study found is taken from it.
    """
    found = []
    for baseline in track(baselines(decider.config), "baselines"):
        known = _known(study, baseline)
        found.append(known or _keep(study, _evaluated(baseline, decider, objective)))
    for best in sorted((b for b in found if b.losses), key=lambda b: b.value)[:HELD_OUT]:
        if best.held_out is None:
            loss = held_out.evaluate([masked(best, decider)])[0].mean
            found[found.index(best)] = _keep(study, replace(best, held_out=loss))
    return found


def _known(study: optuna.Study, baseline: Baseline) -> Baseline | None:
    values = study.user_attrs.get(BASELINE + baseline.name)
    return Baseline(**values | {"losses": tuple(values["losses"])}) if values else None


def _keep(study: optuna.Study, baseline: Baseline) -> Baseline:
    study.set_user_attr(BASELINE + baseline.name, asdict(baseline))
    return baseline


def _evaluated(baseline: Baseline, decider: CandidatePlanner, objective: Objective) -> Baseline:
    try:
        candidate = masked(baseline, decider)
    except ValueError as reason:
        return replace(baseline, illegal=str(reason))
    losses = tuple(objective.evaluate([candidate])[0].losses.tolist())
    return replace(
        baseline, losses=losses, reached=candidate.plan.reached, mask=candidate.digest,
        kv_bytes=decider.kv_bytes(candidate.plan),
    )  # fmt: skip


def masked(baseline: Baseline, decider: CandidatePlanner) -> MaskedPlan:
    """The plan of a baseline.

    Raises:
        ValueError: no legal plan meets the target.
    """
    config, structure = decider.config, decider.structure
    layers = config.layer_range(structure.num_layers)
    # The pool holds statistics of these layers alone.
    scores = score(
        decider.model, baseline.method, decider.pool.statistics(decider.pool.largest),
        structure=structure, kinds=config.structure, layers=layers, seed=config.seed,
    )  # fmt: skip
    if baseline.allocation == "protected":
        layers = range(max(layers.start, 4), min(layers.stop, structure.num_layers - 2))
    allocation = "global" if baseline.allocation == "global" else "uniform"
    ratios = allocate(structure, scores, config.ratio, kinds=config.structure, allocation=allocation, layers=layers)
    whole = len(layers) == structure.num_layers
    return MaskedPlan(decider.plan(scores, ratios, "uniform" if whole and allocation == "uniform" else "per-layer"))


def starts(decider: CandidatePlanner, space: Space) -> list[Candidate]:
    """Points of the space that the sampler learns from first.

    For uniform plans they are the baselines that the family contains, whose masks are known by then. For per-layer
    plans they are some of the baselines' metrics under three plain curves: as it is, with the ends protected, and
    following the scores; those that meet the target.
    """
    subset = decider.pool.largest
    points = [SPECIAL_CASES[name] for name in decider.config.baselines if name in SPECIAL_CASES]
    if space.kv_groups:
        kv_groups = space.default_kv_groups(decider.config.ratio, decider.structure)
        return [Candidate(subset, point, kv_groups=kv_groups) for point in points]
    heads = 0.0 if set(decider.config.structure) >= {"heads", "mlp"} else 1.0
    ends = {"first": 2, "last": 1} if space.layers > 6 else {}
    curves = (Curve(heads=heads), Curve(heads=heads, **ends), Curve(heads=heads, adapt=1.0, **ends))
    points = [SPECIAL_CASES[name] for name in ("energy", "wanda", "param_second")]
    candidates = [Candidate(subset, point, curve) for point in points for curve in curves]
    return [candidate for candidate in candidates if _legal(candidate, decider)]


def _legal(candidate: Candidate, decider: CandidatePlanner) -> bool:
    try:
        decider.decide(candidate)
    except ValueError:
        return False
    return True
