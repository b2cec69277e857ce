"""Structured pruning from the calibration text to the smaller model, one function per step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.idle_experts import idle_experts, idle_words
from pruneengine.calibration.pruning import PruningReport, find_structure
from pruneengine.calibration.statistics import Statistics
from pruneengine.common.errors import InputError
from pruneengine.common.progress import Stopwatch
from pruneengine.data.samples import Samples, Tokens, as_samples
from pruneengine.model import Structure
from pruneengine.structured.allocate import allocate
from pruneengine.structured.apply import compact
from pruneengine.structured.compensate import Compensation, compensate
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.plan import Plan, make_plan, rounding_warning
from pruneengine.structured.scores.hywia import HyWIA
from pruneengine.structured.scores.hywia_fit import Fit, fit
from pruneengine.structured.scores.score import Scores, score
from pruneengine.structured.sparsity_profile import sparsity_profile


@dataclass(frozen=True, kw_only=True)
class PruneReport(PruningReport[PruneConfig, Plan]):
    """The plan of a structured prune and its sources (see :class:`PruningReport`).

    Attributes:
        scores: the scores the plan was decided from.
        fit: the fit of a fitted method; None for other methods.
        compensation: None until a model was compensated.
    """

    scores: Scores
    fit: Fit | None = None
    compensation: Compensation | None = None

    def __str__(self) -> str:
        plan = self.plan
        return (
            f"{self.config.method}: {plan.params_before:,} -> {plan.params_after:,} parameters; asked for "
            f"{plan.asked:.1%} of the prunable ones, removed {plan.reached:.1%} ({self.stages})"
        )


def prune(
    model: nn.Module,
    samples: Tokens | None = None,
    config: PruneConfig | None = None,
    *,
    statistics: Statistics | None = None,
) -> PruneReport:
    """Remove heads, channels, layers or experts of a model, in place.

    Args:
        model: a transformers causal language model of a family that :func:`find_groups` knows.
        samples: calibration token ids, int64 ``[N, L]``; not needed for metrics of weights alone.
        config: method, ratio and kinds of units; defaults to :class:`PruneConfig`.
        statistics: of this model, collected before; then no calibration is run.

    Raises:
        ValueError: before the model is touched, for anything that cannot be done as asked.
    """
    clock = Stopwatch()
    structure = find_structure(model, statistics, clock)
    report = decide(model, structure, samples, config or PruneConfig(), statistics=statistics, clock=clock)
    return carry_out(model, structure, samples, report, clock)


def decide(
    model: nn.Module,
    structure: Structure,
    samples: Tokens | None,
    config: PruneConfig,
    *,
    statistics: Statistics | None = None,
    clock: Stopwatch | None = None,
) -> PruneReport:
    """Return the plan and its sources; the model is not changed, and ``statistics`` are taken to be this model's."""
    clock = clock or Stopwatch()
    layers = config.layer_range(structure.num_layers)
    samples, held_out = _kept_from_fit(samples, config, statistics)
    if statistics is None and config.needs:
        if samples is None:
            raise InputError(f"method {config.method!r} needs calibration batches or statistics, got neither")
        check_reachable(structure, config)
        with clock("calibrate"):
            statistics = calibrate(
                model, samples, config.needs,
                structure=structure, kinds=config.kinds, layers=layers, batch_size=config.batch_size,
            )  # fmt: skip
    profile = fitted = None
    if config.reads_profile:
        assert statistics is not None  # the config needs "squares"
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
    if config.protocol == "engine" and (line := rounding_warning(plan, structure, config.round_to)) is not None:
        warnings = (*warnings, line)
    return PruneReport(
        config=config, plan=plan, scores=scores, statistics=statistics, seconds=clock.seconds, fit=fitted,
        warnings=warnings,
    )  # fmt: skip


def carry_out(
    model: nn.Module, structure: Structure, samples: Tokens | None, report: PruneReport, clock: Stopwatch
) -> PruneReport:
    """Compensate the model as the config asks for and compact it, in place, by the report of :func:`decide`."""
    config, corrections = report.config, None
    if config.compensates:
        assert samples is not None  # decide() refuses a compensation without them
        with clock("compensate"):
            compensation = compensate(
                model, report.plan, samples, config.compensate,
                structure=structure, mode=config.compensate_mode, batch_size=config.batch_size,
            )  # fmt: skip
        report, corrections = replace(report, compensation=compensation), compensation.corrections
    with clock("compact"):
        compact(model, report.plan, structure=structure, corrections=corrections)
    return report


def split_samples(samples: Samples, config: PruneConfig) -> tuple[Samples, Samples | None]:
    """Return the samples of the statistics, and the last ones, which a fitted method keeps from the statistics."""
    count = config.holds_out
    if not count:
        return samples, None
    if len(samples) <= count:
        raise InputError(
            f"{len(samples)} calibration samples: method {config.method!r} holds {count} of them out for its fit, and "
            "the statistics need at least one"
        )
    rest = len(samples) - count
    return (
        Samples(samples.tokens[:rest], samples.source[:rest], samples.report),
        Samples(samples.tokens[rest:], samples.source[rest:], samples.report),
    )


def check_reachable(structure: Structure, config: PruneConfig) -> None:
    """Raise ValueError if no plan can reach the ratio, or if the layers do not exist.

    Plans with equal scores, so it needs no calibration.
    """
    equal = {group.name: torch.ones(group.units) for group in structure.groups}
    # A ranking takes experts one by one, an even share one of every layer.
    ranks = "experts" in config.kinds and config.allocation != "uniform"
    scores = Scores("equal", "sum", equal, torch.ones(structure.num_layers))
    _plan(structure, scores, config, "global" if ranks else "uniform")


def _kept_from_fit(
    samples: Tokens | None, config: PruneConfig, statistics: Statistics | None
) -> tuple[Tokens | None, Samples | None]:
    """Return the samples for statistics and those for a fit; ValueError if the config needs more than there are."""
    if config.compensates and (samples is None or len(as_samples(samples)) < 2):
        raise InputError(
            f"compensation {config.compensate!r} needs at least 2 calibration samples, one of them held out"
        )
    if not config.holds_out:
        return samples, None
    if samples is None:
        raise InputError(f"method {config.method!r} is fitted on calibration batches, got none")
    samples = as_samples(samples)
    if statistics is not None and statistics.data == samples.hash:
        raise InputError(
            f"the statistics were collected on all {len(samples)} samples; method {config.method!r} needs the last "
            f"{config.holds_out} kept from them"
        )
    return split_samples(samples, config)


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
    """Fit the blend for the number of units per group that the plan of an equal blend removes."""
    scores = _score(model, structure, statistics, config, HyWIA(blend=0.5))
    assert scores.blend is not None  # only fused methods are fitted
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
    kinds, protocol = config.kinds, config.protocol
    ratios = allocate(
        structure, scores, config.ratio, kinds=kinds, allocation=allocation,
        layers=config.layer_range(structure.num_layers), protocol=protocol, profile=profile,
    )  # fmt: skip
    return make_plan(
        structure, scores, ratios, config.ratio,
        kinds=kinds, shape=config.final_shape, round_to=config.round_to, protocol=protocol,
    )  # fmt: skip
