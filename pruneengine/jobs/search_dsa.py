"""A search for an allocation function, from the model's name to a measured and proved checkpoint with zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pruneengine.checkpoint.equivalent_class import written_linears
from pruneengine.checkpoint.load import load_skeleton
from pruneengine.checkpoint.write import SavedCheckpoint, count_saved_zeros
from pruneengine.common.progress import Stopwatch
from pruneengine.data.windows import check_spec
from pruneengine.evaluation.measures import Measurer, Measures
from pruneengine.jobs.options import SearchOptions, refuse_recovery, with_search
from pruneengine.jobs.saving import proof_values, save_checkpoint
from pruneengine.jobs.texts import load_evaluation
from pruneengine.model import find_groups
from pruneengine.report import write_report
from pruneengine.report.values.sparse import sparse_details, sparse_summary, speed_notes
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.result import DsaResult
from pruneengine.search.dsa.search import search_dsa
from pruneengine.search.dsa.texts import dsa_texts
from pruneengine.search.run import SearchRun
from pruneengine.search.texts import describe
from pruneengine.sparse.matrices import check_columns, find_matrices
from pruneengine.sparse.prune import SparseReport, sparsify
from pruneengine.sparse.zeros import ZeroCount, count_zeros

FUNCTION_FILE = "function.json"


@dataclass(frozen=True)
class DsaJobResult:
    """What came out of a search job; ``report`` is of the prune by the winner, ``zeros`` are those in the files."""

    result: DsaResult
    report: SparseReport
    dense: Measures
    pruned: Measures
    zeros: ZeroCount
    texts: dict[str, dict[str, Any]]
    warnings: tuple[str, ...] = ()
    saved: SavedCheckpoint | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def run(config: DsaConfig, options: SearchOptions, say: Callable[[str], None] = lambda _: None) -> DsaJobResult:
    """Load, search, prune by the winner, measure, save and prove.

    The function is saved beside the weights as ``function.json``, for ``prune --allocation``, also on other models. A
    job that was stopped goes on where it was when it is started again with the same arguments.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    clock = Stopwatch()
    run_as = _checked(config, options)
    model, tokenizer = options.load(clock, say)
    structure = find_groups(model)
    with clock("text"):
        texts, report = dsa_texts(config, tokenizer, model), load_evaluation(options, tokenizer)
        described, warnings = describe(config, texts, report, options.eval_text)
    measurer = Measurer(report, options.compute_dtype)
    result = search_dsa(model, texts, config, replace(run_as, dtype=measurer.dtype), say=say)
    if report is not None:
        say("measuring dense and pruned")
    with clock("evaluate"):
        dense = measurer.measure(model)
    (calibration,) = texts.pool.values()
    with clock("prune"):
        pruning = sparsify(model, calibration, config.sparse_config, plan=result.plan)
    with clock("evaluate"):
        pruned, ruined = measurer.measure_pruned(model)
    zeros = count_zeros(model, result.plan)
    warnings += result.warnings + pruning.warnings + ruined
    job = DsaJobResult(result, pruning, dense, pruned, zeros, described, warnings)
    recipe = {"search": config.to_dict()} | options.recipe(study=options.study)
    saved = save_checkpoint(
        model, tokenizer, options, clock, say,
        plan=result.plan, recipe=recipe, report=summary(job), dense_config=model.config.to_dict(),
        remarks=("Sparsity", (*_left_out(config), *speed_notes(result.plan))),
    )  # fmt: skip
    if result.function is not None:
        result.function.save(saved.path / FUNCTION_FILE, result.metadata | {"source": options.source})
    in_files = count_saved_zeros(saved.path, result.plan.removed, written_linears(structure))
    zeros = ZeroCount.against(result.plan, in_files)
    job = replace(job, zeros=zeros, saved=saved, seconds=with_search(clock, result.seconds))
    write_report(saved.path, "dsa", _report_values(job, recipe), say)
    return job


def _checked(config: DsaConfig, options: SearchOptions) -> SearchRun:
    """Refuse what can be refused before the weights are loaded; how the search runs."""
    refuse_recovery(options.recover)
    run_as = options.check()
    check_spec(config.calibration, config.nsamples, default=config.nsamples)
    check_spec(config.search_text, config.windows, default=1)
    if config.parsed_pattern.grouped or config.ignore:
        skeleton = load_skeleton(options.source, options.trust_remote_code)
        matrices = find_matrices(skeleton, find_groups(skeleton), config.ignore)
        if config.parsed_pattern.grouped:
            check_columns(matrices, config.parsed_pattern.m)
    return run_as


def _left_out(config: DsaConfig) -> tuple[str, ...]:
    return (f"{', '.join(config.ignore)} (left out by ignore) are dense.",) if config.ignore else ()


def summary(job: DsaJobResult) -> dict[str, Any]:
    """The few numbers that a model card shows."""
    values = sparse_summary(job.report, job.zeros, job.dense, job.pruned, job.warnings)
    winner = job.result.winner.entrant
    found = {"winner": winner.name} | ({} if winner.function is None else {"function": str(winner.function)})
    return values | found | {"trials run": len(job.result.trials)}


def _report_values(job: DsaJobResult, recipe: dict[str, Any]) -> dict[str, Any]:
    values = job.result.to_dict() | summary(job) | sparse_details(job.report) | {"method": "dsa"}
    values |= {"texts": job.texts, "recipe": recipe, "speed notes": list(speed_notes(job.result.plan))}
    return values | proof_values(job.saved) | {"seconds": job.seconds, "warnings": list(job.warnings)}
