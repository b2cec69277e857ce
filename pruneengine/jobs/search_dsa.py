"""Job of ``pruneengine search --method dsa``: a model in, a checkpoint pruned by the best allocation function out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pruneengine.checkpoint.equivalent_class import written_linears
from pruneengine.checkpoint.load import load_skeleton
from pruneengine.checkpoint.write import count_saved_zeros
from pruneengine.data.windows import check_spec
from pruneengine.jobs.checkpoint_job import CheckpointJob, CheckpointResult
from pruneengine.jobs.checks import refuse_recovery
from pruneengine.jobs.options import SearchOptions
from pruneengine.jobs.texts import load_evaluation
from pruneengine.model import find_groups
from pruneengine.report.values.search import dsa_summary, with_search
from pruneengine.report.values.sparse import sparse_details, speed_notes
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


@dataclass(frozen=True, kw_only=True)
class DsaJobResult(CheckpointResult):
    """Result of a search for an allocation function.

    Attributes:
        result: the winner, the finalists and the trials.
        report: of the prune by the winner.
        zeros: counted in the saved files.
        texts: every text of the search and of the report, with what they share.
    """

    result: DsaResult
    report: SparseReport
    zeros: ZeroCount
    texts: dict[str, dict[str, Any]]


def run(config: DsaConfig, options: SearchOptions, say: Callable[[str], None] = lambda _: None) -> DsaJobResult:
    """Load, search, prune by the winner, measure, save and prove.

    The function is saved beside the weights as ``function.json``, for ``prune --allocation``, also on other models. A
    job that was stopped goes on where it was when it is started again with the same arguments.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    run_as = _checked(config, options)
    windows = {"calibration samples": config.calibration_seqlen, "search windows": config.seqlen}
    job = CheckpointJob.load(options, say, windows)
    job.check_room()
    model, structure = job.model, find_groups(job.model)
    with job.clock("text"):
        texts = dsa_texts(config, job.tokenizer, model)
        job.evaluation = load_evaluation(options, job.tokenizer)
        described, warnings = describe(config, texts, job.evaluation, options.eval_text)
        job.warnings += warnings
    result = search_dsa(model, texts, config, replace(run_as, dtype=options.compute_dtype), say=say)
    job.warnings += result.warnings
    if job.evaluation is not None:
        say("measuring dense and pruned")
    dense = job.dense()
    (calibration,) = texts.pool.values()
    with job.clock("prune"):
        report = sparsify(model, calibration, config.sparse_config, plan=result.plan)
    job.warnings += report.warnings
    pruned = job.changed()
    zeros = count_zeros(model, result.plan)
    recipe = {"search": config.to_dict()} | options.recipe(study=options.study)
    saved = job.store(
        plan=result.plan, recipe=recipe, report=dsa_summary(result, report, zeros, dense, pruned, job.warnings),
        remarks=("Sparsity", (*_ignored_in_words(config), *speed_notes(result.plan))),
    )  # fmt: skip
    if result.function is not None:
        result.function.save(saved.path / FUNCTION_FILE, result.metadata | {"source": options.source})
    in_files = count_saved_zeros(saved.path, result.plan.removed, written_linears(structure))
    done = DsaJobResult(
        result=result, report=report, dense=dense, pruned=pruned, zeros=ZeroCount.against(result.plan, in_files),
        saved=saved, texts=described, warnings=job.warnings, seconds=with_search(job.clock.seconds, result.seconds),
    )  # fmt: skip
    job.report(saved, "dsa", _report_values(done, recipe))
    return done


def _checked(config: DsaConfig, options: SearchOptions) -> SearchRun:
    """Refuse what can be refused before the weights are loaded, and return how the search runs."""
    refuse_recovery(options.recover)
    run_as = options.check()
    check_spec(config.calibration, config.nsamples, default=config.nsamples)
    check_spec(config.search_text, config.windows, default=1, role="evaluation")
    pattern = config.parsed_pattern
    if pattern.m is not None or config.ignore:
        skeleton = load_skeleton(options.source, options.trust_remote_code)
        matrices = find_matrices(skeleton, find_groups(skeleton), config.ignore)
        if pattern.m is not None:
            check_columns(matrices, pattern.m)
    return run_as


def _ignored_in_words(config: DsaConfig) -> tuple[str, ...]:
    """Return the sentence that names the linears left out; none where all are pruned."""
    return (f"{', '.join(config.ignore)} (left out by ignore) are dense.",) if config.ignore else ()


def _report_values(job: DsaJobResult, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return all values of the report: trials, numbers of the model card, figures, texts, recipe and times."""
    result = job.result
    values = result.to_dict() | dsa_summary(result, job.report, job.zeros, job.dense, job.pruned, job.warnings)
    values |= sparse_details(job.report) | {"method": "dsa"}
    values |= {"texts": job.texts, "recipe": recipe, "speed notes": list(speed_notes(result.plan))}
    return values | job.closing_values() | {"warnings": list(job.warnings)}
