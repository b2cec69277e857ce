"""prune(): the whole path, one line a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.idle_experts import idle_experts, idle_words
from pruneengine.calibration.statistics import Statistics
from pruneengine.common.progress import Stopwatch
from pruneengine.data.windows import Samples, as_samples
from pruneengine.model import Structure, find_groups, model_fingerprint
from pruneengine.model.experts import unfuse_experts
from pruneengine.structured.allocate import allocate
from pruneengine.structured.apply import compact
from pruneengine.structured.compensate import Compensation, compensate
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.plan import Plan, make_plan
from pruneengine.structured.scores.hywia import HyWIA
from pruneengine.structured.scores.hywia_fit import Fit, fit
from pruneengine.structured.scores.score import Scores, score
from pruneengine.structured.sparsity_profile import sparsity_profile


@dataclass(frozen=True)
class PruneReport:
    """What was done: the plan, what it was decided from, what makes up for removed units, and every stage's seconds.

    ``fit`` is that of a fitted method; ``compensation`` is None until a model was compensated; ``warnings`` say what
    the calibration text leaves open.
    """

    config: PruneConfig
    plan: Plan
    scores: Scores
    statistics: Statistics | None
    seconds: dict[str, float]
    fit: Fit | None = None
    compensation: Compensation | None = None
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        plan = self.plan
        spent = ", ".join(f"{stage} {s:.2f} s" for stage, s in self.seconds.items())
        return (
            f"{self.config.method}: {plan.params_before:,} -> {plan.params_after:,} parameters; asked for "
            f"{plan.asked:.1%} of the prunable ones, removed {plan.reached:.1%} ({spent})"
        )


def prune(
    model: nn.Module,
    batches: Samples | Tensor | Sequence[Tensor] | None = None,
    config: PruneConfig | None = None,
    *,
    statistics: Statistics | None = None,
) -> PruneReport:
    """Prune a model in place.

    Args:
        model: a transformers causal language model of a family that :func:`find_groups` knows.
        batches: calibration token ids, int64 ``[N, L]``; not needed for metrics of weights alone.
        config: what to do; defaults to :class:`PruneConfig`.
        statistics: of this model, collected before; then no calibration is run.

    Raises:
        ValueError: before the model is touched, for anything that cannot be done as asked.
    """
    config = config or PruneConfig()
    clock = Stopwatch()
    with clock("structure"):
        structure = find_groups(unfuse_experts(model))
    if statistics is not None:
        statistics.check(model=model_fingerprint(model))
    report = decide(model, structure, batches, config, statistics=statistics, clock=clock)
    return carry_out(model, structure, batches, report, clock)


def carry_out(
    model: nn.Module,
    structure: Structure,
    batches: Samples | Tensor | Sequence[Tensor] | None,
    report: PruneReport,
    clock: Stopwatch,
) -> PruneReport:
    """What :func:`decide` decided, done to the model in place: compensated as its config asks for, and compacted."""
    config, corrections = report.config, None
    if config.compensates:
        with clock("compensate"):
            compensation = compensate(
                model, report.plan, batches, config.compensate,
                structure=structure, mode=config.compensate_mode, batch_size=config.batch_size,
            )  # fmt: skip
        report, corrections = replace(report, compensation=compensation), compensation.corrections
    with clock("compact"):
        compact(model, report.plan, structure=structure, corrections=corrections)
    return report


def decide(
    model: nn.Module,
    structure: Structure,
    batches: Samples | Tensor | Sequence[Tensor] | None,
    config: PruneConfig,
    *,
    statistics: Statistics | None = None,
    clock: Stopwatch | None = None,
) -> PruneReport:
    """Everything up to the plan; the model is not changed, and ``statistics`` are taken to be this model's."""
    clock = clock or Stopwatch()
    layers = config.layer_range(structure.num_layers)
    if config.compensates and (batches is None or len(as_samples(batches)) < 2):
        raise ValueError(
            f"compensation {config.compensate!r} needs at least 2 calibration samples, one of them held out"
        )
    if batches is None and config.holds_out:
        raise ValueError(f"method {config.method!r} is fitted on calibration batches, got none")
    held_out = None
    if config.holds_out:
        samples = as_samples(batches)
        if statistics is not None and statistics.data == samples.hash:
            raise ValueError(
                f"the statistics were collected on all {len(samples)} samples; method {config.method!r} needs the last "
                f"{config.holds_out} kept from them"
            )
        batches, held_out = split_samples(samples, config)
    if statistics is None and config.needs:
        if batches is None:
            raise ValueError(f"method {config.method!r} needs calibration batches or statistics, got neither")
        check_reachable(structure, config)
        with clock("calibrate"):
            statistics = calibrate(
                model, batches, config.needs,
                structure=structure, kinds=config.kinds, layers=layers, batch_size=config.batch_size,
            )  # fmt: skip
    profile = fitted = None
    if config.reads_profile:
        with clock("profile"):
            kinds = config.kinds
            profile = sparsity_profile(model, structure, statistics, config.ratio, kinds=kinds, layers=layers)
    if held_out is not None:
        with clock("fit"):
            fitted = _fit(model, structure, statistics, held_out, config, profile)
    with clock("score"):
        scores = _score(model, structure, statistics, config, fitted.options if fitted else config.hywia)
    with clock("plan"):
        plan = _plan(structure, scores, config, config.allocation, profile)
    idle = idle_experts(structure, statistics) if statistics is not None else ()
    warnings = idle_words(idle, "by the statistics they are worth nothing, and they are the first to lose units")
    return PruneReport(config, plan, scores, statistics, clock.seconds, fitted, warnings=warnings)


def split_samples(samples: Samples, config: PruneConfig) -> tuple[Samples, Samples | None]:
    """The samples of the statistics, and those that a fitted method keeps from them (its last ones)."""
    count = config.holds_out
    if not count:
        return samples, None
    if len(samples) <= count:
        raise ValueError(
            f"{len(samples)} calibration samples: method {config.method!r} holds {count} of them out for its fit, and "
            "the statistics need at least one"
        )
    rest = len(samples) - count
    return (
        Samples(samples.tokens[:rest], samples.source[:rest], samples.report),
        Samples(samples.tokens[rest:], samples.source[rest:], samples.report),
    )


def check_reachable(structure: Structure, config: PruneConfig) -> None:
    """Whether the target can be reached at all, before anything is spent: the plan for equal scores is made.

    Raises:
        ValueError: no legal width reaches the ratio, or the layers do not exist.
    """
    equal = {group.name: torch.ones(group.units) for group in structure.groups}
    # A ranking takes experts one by one, an even share one of every layer.
    ranks = "experts" in config.kinds and config.allocation != "uniform"
    scores = Scores("equal", "sum", equal, torch.ones(structure.num_layers))
    _plan(structure, scores, config, "global" if ranks else "uniform")


def _score(
    model: nn.Module, structure: Structure, statistics: Statistics | None, config: PruneConfig, hywia: HyWIA
) -> Scores:
    return score(
        model, config.method, statistics,
        structure=structure, kinds=config.kinds, layers=config.layer_range(structure.num_layers),
        aggregate=config.aggregate, fold=config.fold, seed=config.seed, hywia=hywia,
    )  # fmt: skip


def _fit(
    model: nn.Module,
    structure: Structure,
    statistics: Statistics | None,
    held_out: Samples,
    config: PruneConfig,
    profile: dict[str, float] | None,
) -> Fit:
    """The fitted blend, for as many units a group as the plan of an equal blend removes."""
    scores = _score(model, structure, statistics, config, HyWIA(blend=0.5))
    plan = _plan(structure, scores, config, config.allocation, profile)
    removed = {name: plan.units[name] - len(kept) for name, kept in plan.keep.items()}
    return fit(
        model, structure, scores.blend, removed, held_out, config.hywia, steps=config.hywia_steps, seed=config.seed
    )


def _plan(
    structure: Structure,
    scores: Scores,
    config: PruneConfig,
    allocation: str,
    profile: dict[str, float] | None = None,
) -> Plan:
    layers = config.layer_range(structure.num_layers)
    options = {"kinds": config.kinds, "protocol": config.protocol}
    ratios = allocate(structure, scores, config.ratio, allocation=allocation, layers=layers, profile=profile, **options)
    shape = config.final_shape
    return make_plan(structure, scores, ratios, config.ratio, shape=shape, round_to=config.round_to, **options)
