"""The main job: a model in, a measured and proved checkpoint out. What ``pruneengine prune`` runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.statistics import Statistics
from pruneengine.checkpoint.reload_proof import reload_and_generate
from pruneengine.checkpoint.write import SavedCheckpoint
from pruneengine.common.files import check_writable
from pruneengine.common.progress import Stopwatch
from pruneengine.data.windows import Samples, check_spec
from pruneengine.evaluation.measures import Measurer, Measures
from pruneengine.evaluation.perplexity import best_dtype
from pruneengine.evaluation.speed import measure_speed_pair
from pruneengine.jobs.options import JobOptions, check_evaluation, check_out
from pruneengine.jobs.recover_pruned import recover_pruned, recovering
from pruneengine.jobs.saving import ending, save_checkpoint, training_kept
from pruneengine.jobs.texts import load_texts
from pruneengine.model import Structure, find_groups, model_fingerprint
from pruneengine.recovery import RecoverReport, check_recovery, check_work_folder, load_rows, work_folder
from pruneengine.report import write_report
from pruneengine.report.values.structured import details, hashes, summary
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.prune import PruneReport, carry_out, check_reachable, decide, split_samples


@dataclass(frozen=True)
class JobResult:
    """What came out of a job."""

    structure: Structure
    report: PruneReport
    dense: Measures
    pruned: Measures | None = None
    recovered: Measures | None = None
    recovery: RecoverReport | None = None
    saved: SavedCheckpoint | None = None
    text: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def run(config: PruneConfig, options: JobOptions, say: Callable[[str], None] = lambda _: None) -> JobResult:
    """Load, calibrate, decide, compact, measure, save and prove. With ``options.out`` None it stops at the plan.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    clock = Stopwatch()
    config, options = _checked(config, options)
    if options.device == "cpu" and options.dtype != torch.float32 and best_dtype("cpu") != options.dtype:
        say(
            f"this CPU has no {str(options.dtype).removeprefix('torch.')} arithmetic: float32 is many times faster here"
        )
    held = Statistics.load(options.statistics) if options.statistics and options.statistics.exists() else None
    model, tokenizer = options.load(clock, say)
    structure = find_groups(model)
    check_reachable(structure, config)
    if options.recover is not None:
        check_recovery(model, options.recover, trust_remote_code=options.trust_remote_code)
    if held is not None:
        held.check(model=model_fingerprint(model))
    with clock("text"):
        calibration, evaluation, warnings = load_texts(config, options, model, tokenizer, calibrates=config.calibrates)
        rows = load_rows(options.recover, tokenizer, model) if options.recover and options.out else None
    if rows is not None:
        check_work_folder(work_folder(options.out), options.recover, rows, options.compute_dtype)
    say(f"deciding what to remove: {config.method}, ratio {config.ratio:g}")
    statistics = held
    if options.statistics is not None and calibration is not None:
        with clock("calibrate"):
            counted, _ = split_samples(calibration, config)
            statistics = _complete(held, model, structure, counted, config, options.statistics)
    report = decide(model, structure, calibration, config, statistics=statistics, clock=clock)
    warnings += report.warnings
    measurer = Measurer(evaluation, options.compute_dtype)
    if options.out is None:
        return JobResult(structure, report, measurer.measure(model), warnings=warnings, seconds=clock.seconds)
    say("measuring dense and pruned")
    with clock("evaluate"):
        dense = measurer.measure(model)
    original_config = model.config.to_dict()
    original = copy.deepcopy(model) if options.speed else None
    report = carry_out(model, structure, calibration, report, clock)
    if report.compensation is not None:
        warnings += report.compensation.warnings
    with clock("evaluate"):
        pruned, ruined = measurer.measure_pruned(model)
    warnings += ruined
    if original is not None:
        with clock("speed"):
            before, after = measure_speed_pair(original, model)
        del original
        dense, pruned = replace(dense, speed=before), replace(pruned, speed=after)
    hashed = calibration.hash if calibration is not None else None
    recipe = {"config": config.to_dict()} | options.recipe(calibration_hash=hashed)
    numbers = summary(report, dense, pruned, warnings)
    recovery = recovered = None

    def store() -> SavedCheckpoint:
        return save_checkpoint(
            model, tokenizer, options, clock, say,
            plan=report.plan, recipe=recipe, report=numbers, dense_config=original_config,
        )  # fmt: skip

    if rows is not None:
        say(recovering(rows, work_folder(options.out)))
        found = recover_pruned(
            model, tokenizer, options.recover, rows, work_folder(options.out),
            before=pruned, measurer=measurer, store=lambda: store().path, clock=clock,
            trust_remote_code=options.trust_remote_code,
        )  # fmt: skip
        recovery, recovered = found.report, found.after
        warnings += found.warnings
        numbers["recovery"] = found.numbers
        recipe["recovery"] = recovery.recipe()
    with training_kept(work_folder(options.out)) if rows is not None else nullcontext():
        saved = store()
    text = None
    if options.prompt:
        with clock("generate"):
            text = reload_and_generate(saved.path, options.prompt, max_new_tokens=24)
    result = JobResult(structure, report, dense, pruned, recovered, recovery, saved, text, warnings, clock.seconds)
    with clock("report"):
        # Only now: the proof and the time it took belong into the report, and the checkpoint is already safe.
        write_report(saved.path, "prune", _report_values(result, numbers, recipe, options), say)
    return result


def _checked(config: PruneConfig, options: JobOptions) -> tuple[PruneConfig, JobOptions]:
    """Refuse what can be refused before a model is loaded, and settle the sizes of the texts."""
    if options.out is not None:
        check_out(options.out, options.overwrite, options.source)
    config = replace(config, nsamples=check_spec(config.calibration, config.nsamples, default=32))
    windows = check_evaluation(options.eval_text, options.eval_seqlen, options.eval_windows)
    options = replace(options, eval_windows=windows)
    if options.statistics is not None:
        check_writable(options.statistics.parent)
    if options.recover is not None:
        options.recover.check_sources()
    return config, options


def _complete(
    held: Statistics | None,
    model: nn.Module,
    structure: Structure,
    calibration: Samples,
    config: PruneConfig,
    path: Path,
) -> Statistics:
    """The statistics of the file, with what the method needs and the file lacks collected and kept there too."""
    if held is not None:
        held.check(data=calibration.hash)
    missing = config.needs - (held.tensors.keys() if held else set())
    if not missing:
        return held
    found = calibrate(model, calibration, missing, structure=structure, batch_size=config.batch_size)
    if held is not None:
        loss = found.loss if len(found.loss) else held.loss
        found = replace(found, tensors=held.tensors | found.tensors, loss=loss)
    found.save(path)
    return found


def _report_values(
    result: JobResult, numbers: dict[str, Any], recipe: dict[str, Any], options: JobOptions
) -> dict[str, Any]:
    made = {"recipe": recipe, "hashes": hashes(result.report, result.dense.perplexity)}
    return numbers | details(result.report) | made | ending(options, result.saved, result.text, result.seconds)
