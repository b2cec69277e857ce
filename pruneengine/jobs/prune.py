"""Job of ``pruneengine prune``, structured: a model in, a measured and proved checkpoint out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.statistics import Statistics
from pruneengine.checkpoint.write import SavedCheckpoint
from pruneengine.common.files import check_writable
from pruneengine.data.windows import Samples, check_spec
from pruneengine.evaluation.measures import Measures
from pruneengine.evaluation.perplexity import best_dtype
from pruneengine.evaluation.speed import measure_speed_pair
from pruneengine.jobs.checkpoint_job import CheckpointJob, CheckpointResult
from pruneengine.jobs.checks import check_evaluation
from pruneengine.jobs.options import JobOptions
from pruneengine.jobs.recover_pruned import training_kept
from pruneengine.jobs.statistics_file import keep_statistics
from pruneengine.jobs.texts import load_texts
from pruneengine.model import Structure, find_groups, model_fingerprint
from pruneengine.report.values.structured import details, hashes, summary
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.prune import PruneReport, carry_out, check_reachable, decide, split_samples


@dataclass(frozen=True, kw_only=True)
class JobResult(CheckpointResult):
    """Result of a structured prune.

    Attributes:
        structure: groups of the dense model.
        report: the plan, and what it was decided from.
    """

    structure: Structure
    report: PruneReport


@dataclass(frozen=True)
class DryRun:
    """Result of a structured prune that stopped at the plan."""

    structure: Structure
    report: PruneReport
    dense: Measures
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def run(config: PruneConfig, options: JobOptions, say: Callable[[str], None] = lambda _: None) -> JobResult | DryRun:
    """Load, calibrate, decide, compact, measure, save and prove. With ``options.out`` None it stops at the plan.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    config, options = _checked(config, options)
    _warn_of_slow_dtype(options, say)
    earlier = Statistics.load(options.statistics) if options.statistics and options.statistics.exists() else None
    job = CheckpointJob.load(options, say, {"calibration samples": config.seqlen} if config.calibrates else {})
    model, structure = job.model, find_groups(job.model)
    check_reachable(structure, config)
    job.check_room(1 - config.ratio * structure.prunable_params(config.kinds) / structure.total_params)
    job.check_recovery(options.recover)
    if earlier is not None:
        earlier.check(model=model_fingerprint(model))
    with job.clock("text"):
        calibration, job.evaluation, warnings = load_texts(
            config, options, model, job.tokenizer, calibrates=config.calibrates
        )
        job.warnings += warnings
    planned = job.plan_recovery(options.recover) if options.out is not None else None
    say(f"deciding what to remove: {config.method}, ratio {config.ratio:g}")
    statistics = earlier
    if options.statistics is not None and calibration is not None:
        with job.clock("calibrate"):
            counted, _ = split_samples(calibration, config)
            statistics, lines = _complete(earlier, model, structure, counted, config, options.statistics)
            job.warnings += lines
    report = decide(model, structure, calibration, config, statistics=statistics, clock=job.clock)
    job.warnings += report.warnings
    if options.out is None:
        return DryRun(structure, report, job.measurer.measure(model), job.warnings, job.clock.seconds)
    say("measuring dense and pruned")
    dense = job.dense()
    original = copy.deepcopy(model) if options.speed else None
    report = carry_out(model, structure, calibration, report, job.clock)
    if report.compensation is not None:
        job.warnings += report.compensation.warnings
    pruned = job.changed()
    if original is not None:
        with job.clock("speed"):
            before, after = measure_speed_pair(original, model)
        del original
        dense, pruned = replace(dense, speed=before), replace(pruned, speed=after)
    hashed = calibration.hash if calibration is not None else None
    recipe = {"config": config.to_dict()} | options.recipe(calibration_hash=hashed)
    numbers = summary(report, dense, pruned, job.warnings)

    def store() -> SavedCheckpoint:
        """Save the model as it is now; a proof that was stopped is a warning of the report, too."""
        earlier = len(job.warnings)
        saved = job.store(plan=report.plan, recipe=recipe, report=numbers)
        if stopped := job.warnings[earlier:]:
            numbers["warnings"] = [*numbers.get("warnings", ()), *stopped]
        return saved

    recovered = job.recover(planned, pruned, store=lambda: store().path)
    if recovered is not None:
        numbers["recovery"] = recovered.numbers
        recipe["recovery"] = recovered.report.recipe()
    with training_kept(planned.work if planned else None):
        saved = store()
    result = JobResult(
        structure=structure, report=report, dense=dense, pruned=pruned, saved=saved, recovered=recovered,
        text=job.continuation(saved, options.prompt), warnings=job.warnings, seconds=job.clock.seconds,
    )  # fmt: skip
    with job.clock("report"):
        # Only now: the proof and the time it took belong into the report, and the checkpoint is already safe.
        job.report(saved, "prune", _report_values(result, numbers, recipe, options))
    return result


def _checked(config: PruneConfig, options: JobOptions) -> tuple[PruneConfig, JobOptions]:
    """Refuse what can be refused before a model is loaded, and settle the sizes of the texts."""
    if options.out is not None:
        options.claim(options.recover.teacher if options.recover else None)
    config = replace(config, nsamples=check_spec(config.calibration, config.nsamples, default=32, counted=True))
    windows = check_evaluation(options.eval_text, options.eval_seqlen, options.eval_windows)
    options = replace(options, eval_windows=windows)
    if options.statistics is not None:
        check_writable(options.statistics.parent)
    if options.recover is not None:
        options.recover.check_sources()
    return config, options


def _warn_of_slow_dtype(options: JobOptions, say: Callable[[str], None]) -> None:
    """Say that float32 is faster, if the CPU computes the chosen dtype in software."""
    if options.device == "cpu" and options.dtype != torch.float32 and best_dtype("cpu") != options.dtype:
        say(
            f"this CPU has no {str(options.dtype).removeprefix('torch.')} arithmetic: float32 is many times faster here"
        )


def _complete(
    earlier: Statistics | None,
    model: nn.Module,
    structure: Structure,
    calibration: Samples,
    config: PruneConfig,
    path: Path,
) -> tuple[Statistics | None, tuple[str, ...]]:
    """Return the statistics of the file, completed by what the method needs and it lacks, and warnings."""
    if earlier is not None:
        earlier.check(data=calibration.hash)
    missing = config.needs - (earlier.tensors.keys() if earlier is not None else set())
    if not missing:
        return earlier, ()
    statistics = calibrate(model, calibration, missing, structure=structure, batch_size=config.batch_size)
    return keep_statistics(statistics, path)


def _report_values(
    result: JobResult, numbers: dict[str, Any], recipe: dict[str, Any], options: JobOptions
) -> dict[str, Any]:
    """Return all values of the report: the numbers of the model card, figures, recipe, hashes and times."""
    made = {"recipe": recipe, "hashes": hashes(result.report, result.dense.perplexity)}
    closing = options.evaluation | result.closing_values(options.prompt)
    return numbers | details(result.report) | made | closing
