"""Job of ``pruneengine prune``, sparse: a model in, a measured and proved checkpoint with zeros out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pruneengine.calibration.statistics import Statistics
from pruneengine.checkpoint.equivalent_class import written_linears
from pruneengine.checkpoint.load import load_skeleton
from pruneengine.checkpoint.write import count_saved_zeros
from pruneengine.common.errors import InputError
from pruneengine.common.files import check_writable
from pruneengine.data.windows import Samples, check_spec
from pruneengine.jobs.checkpoint_job import CheckpointJob, CheckpointResult
from pruneengine.jobs.checks import check_evaluation, refuse_recovery
from pruneengine.jobs.options import JobOptions
from pruneengine.jobs.statistics_file import keep_statistics
from pruneengine.jobs.texts import load_texts
from pruneengine.model import find_groups, model_fingerprint
from pruneengine.report.values.sparse import sparse_details, sparse_hashes, sparse_summary, speed_notes
from pruneengine.sparse.allocations.allocate import allocate_sparsities, needs_statistics
from pruneengine.sparse.allocations.parse import WrittenSparsities, parse_allocation, without_files
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.matrices import check_columns, find_matrices
from pruneengine.sparse.pattern import Pattern
from pruneengine.sparse.prune import SparseReport, carry_out, check_layers, check_statistics, decide, keep_layers
from pruneengine.sparse.resume import partial_folder, remove_partial
from pruneengine.sparse.zeros import ZeroCount, count_zeros


@dataclass(frozen=True, kw_only=True)
class SparseResult(CheckpointResult):
    """Result of a sparse prune.

    Attributes:
        report: the plan, and what it was decided from.
        zeros: counted in the saved files.
    """

    report: SparseReport
    zeros: ZeroCount


@dataclass(frozen=True)
class SparseDryRun:
    """Result of a sparse prune that stopped at the plan."""

    report: SparseReport
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    config: SparseConfig, options: JobOptions, say: Callable[[str], None] = lambda _: None
) -> SparseResult | SparseDryRun:
    """Load, decide, prune, measure, save and prove. With ``options.out`` None it stops at the plan.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    config, options = _checked(config, options)
    earlier = _earlier_statistics(config, options)
    job = CheckpointJob.load(options, say, {"calibration samples": config.seqlen} if calibrates(config) else {})
    job.check_room()
    model, structure = job.model, find_groups(job.model)
    with job.clock("text"):
        calibration, job.evaluation, warnings = load_texts(
            config, options, model, job.tokenizer, calibrates=calibrates(config)
        )
        job.warnings += warnings
    if options.out is not None:
        check_layers(config, partial_folder(options.out), model, calibration)
    say(f"deciding how much of each matrix goes: {_allocation_in_words(config)}, sparsity {config.sparsity:g}")
    if earlier is not None:
        earlier.check(model=model_fingerprint(model), data=calibration.hash if calibration is not None else None)
    report = decide(model, structure, calibration, config, statistics=earlier, clock=job.clock)
    if options.statistics is not None and earlier is None:
        job.warnings += _keep_statistics(report, options.statistics)
    if options.out is None:
        return SparseDryRun(report, job.warnings + report.warnings, job.clock.seconds)
    work = partial_folder(options.out)
    partial = keep_layers(model, calibration, report, work)
    dense = job.dense()
    say(f"pruning by {config.method}" + (f", behind the layers in {work}" if work.exists() else ""))
    report = carry_out(model, structure, calibration, report, job.clock, partial)
    job.warnings += report.warnings
    pruned = job.changed()
    zeros = count_zeros(model, report.plan)
    job.warnings += _count_warnings(zeros)
    recipe = _recipe(config, options, calibration)
    numbers = sparse_summary(report, zeros, dense, pruned, job.warnings)
    saved = job.store(
        plan=report.plan, recipe=recipe, report=numbers,
        remarks=("Sparsity", (_count_in_words(zeros, report), *speed_notes(report.plan))),
    )  # fmt: skip
    remove_partial(work)
    in_files = count_saved_zeros(saved.path, report.plan.removed, written_linears(structure))
    zeros = ZeroCount.against(report.plan, in_files)
    numbers |= sparse_summary(report, zeros, dense, pruned, job.warnings)
    result = SparseResult(
        report=report, dense=dense, pruned=pruned, zeros=zeros, saved=saved,
        text=job.continuation(saved, options.prompt), warnings=job.warnings, seconds=job.clock.seconds,
    )  # fmt: skip
    # Only now: the proof and the time it took belong into the report, and the checkpoint is already safe.
    job.report(saved, "sparse", _report_values(result, numbers, recipe, options))
    return result


def calibrates(config: SparseConfig) -> bool:
    """Return True if the prune reads the calibration text."""
    return config.method != "magnitude" or needs_statistics(config)


def _checked(config: SparseConfig, options: JobOptions) -> tuple[SparseConfig, JobOptions]:
    """Refuse what can be refused before the weights are loaded, and settle the sizes of the texts."""
    refuse_recovery(options.recover)
    if options.speed:
        raise InputError(
            "zeros in dense matrices take as long as other weights: there is no speed to measure (--speed)"
        )
    if options.statistics is not None:
        check_writable(options.statistics.parent)
    if options.out is not None:
        options.claim()
        check_layers(config, partial_folder(options.out))
    config = replace(config, nsamples=check_spec(config.calibration, config.nsamples, default=32, counted=True))
    windows = check_evaluation(options.eval_text, options.eval_seqlen, options.eval_windows)
    scored = needs_statistics(config) or config.allocation == "global"
    skeleton = load_skeleton(options.source, options.trust_remote_code)
    matrices = find_matrices(skeleton, find_groups(skeleton), config.ignore)
    pattern = Pattern.parse(config.pattern)
    if pattern.m is not None:
        check_columns(matrices, pattern.m)
    if not scored:
        allocate_sparsities(skeleton, matrices, config)
    # From here on no file of an allocation is read: what the recipe holds is what is done.
    config = replace(config, allocation=without_files(config.allocation))
    return config, replace(options, eval_windows=windows)


def _allocation_in_words(config: SparseConfig) -> str:
    """Return the allocation's name or expression, and for written sparsities their description."""
    meaning = parse_allocation(config.allocation)
    return meaning.words if isinstance(meaning, WrittenSparsities) else config.allocation


def _earlier_statistics(config: SparseConfig, options: JobOptions) -> Statistics | None:
    """Return the statistics of an earlier run, checked against the config before the model is loaded."""
    if options.statistics is None or not options.statistics.exists():
        return None
    earlier = Statistics.load(options.statistics)
    try:
        check_statistics(config, earlier)
    except ValueError as error:
        raise InputError(f"{options.statistics}: {error}") from None
    return earlier


def _keep_statistics(report: SparseReport, path: Path) -> tuple[str, ...]:
    """Save the statistics, and return a warning if the prune needed none, or the file cannot take them."""
    if report.statistics is None:
        return (f"no statistics of the dense model were needed, so none are kept in {path}",)
    return keep_statistics(report.statistics, path)[1]


def _count_warnings(zeros: ZeroCount) -> tuple[str, ...]:
    """Return a warning if matrices have other than the planned number of zeros."""
    if not zeros.differing:
        return ()
    name, difference = next(iter(zeros.differing.items()))
    return (
        f"{len(zeros.differing)} of {len(zeros.zeros)} matrices have other than the planned number of zeros, such as "
        f"{name} ({difference:+,}); weights that were zero already count, too",
    )


def _count_in_words(zeros: ZeroCount, report: SparseReport) -> str:
    """Return the model card's paragraph of the counted zeros."""
    plan = report.plan
    weights = sum(rows * columns for rows, columns in plan.shapes.values())
    return (
        f"{zeros.total:,} of the {weights:,} weights of {len(plan.shapes)} linears are zero "
        f"({zeros.total / weights:.2%}; pattern {plan.pattern}, {plan.method}, allocation {plan.allocation}). "
        f"{_dense_parts(report.config)} are dense. plan.json holds the count of every matrix."
    )


def _dense_parts(config: SparseConfig) -> str:
    """Return the names of the parts that stay dense."""
    if not config.ignore:
        return "Embeddings and the head"
    return f"Embeddings, the head and {', '.join(config.ignore)} (left out by ignore)"


def _recipe(config: SparseConfig, options: JobOptions, calibration: Samples | None) -> dict[str, Any]:
    """Return the recipe: the config, the model and the hash of the calibration text."""
    hashed = calibration.hash if calibration is not None else None
    return {"sparse": config.to_dict()} | options.recipe(calibration_hash=hashed)


def _report_values(
    result: SparseResult, numbers: dict[str, Any], recipe: dict[str, Any], options: JobOptions
) -> dict[str, Any]:
    """Return all values of the report: the numbers of the model card, figures, recipe, hashes and times."""
    plan = result.report.plan
    if isinstance(recipe["sparse"]["allocation"], dict):
        # Its figures show the sparsity of every linear; recipe.yaml has all digits.
        recipe = recipe | {"sparse": recipe["sparse"] | {"allocation": plan.allocation}}
    values = numbers | sparse_details(result.report) | {"recipe": recipe, "speed notes": list(speed_notes(plan))}
    values["hashes"] = sparse_hashes(result.report, recipe["calibration_hash"], result.dense.perplexity)
    return values | options.evaluation | result.closing_values(options.prompt)
