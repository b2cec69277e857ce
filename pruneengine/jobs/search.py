"""A search from the model's name to a measured and proved checkpoint. What ``pruneengine search`` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pruneengine.checkpoint.write import SavedCheckpoint
from pruneengine.common.progress import Stopwatch
from pruneengine.data.windows import check_spec
from pruneengine.evaluation.measures import Measurer, Measures
from pruneengine.jobs.options import SearchOptions, with_search
from pruneengine.jobs.recover_pruned import Recovered, recover_pruned, recovering
from pruneengine.jobs.saving import proof_values, save_checkpoint, training_kept
from pruneengine.jobs.texts import load_evaluation
from pruneengine.model import find_groups
from pruneengine.recovery import check_recovery, check_work_folder, load_rows, work_folder
from pruneengine.report import write_report
from pruneengine.report.values.structured import measured_values, plan_columns
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.result import SearchResult
from pruneengine.search.adapruner.search import search
from pruneengine.search.adapruner.texts import search_texts
from pruneengine.search.run import SearchRun
from pruneengine.search.texts import describe
from pruneengine.structured.apply import compact
from pruneengine.structured.prune import check_reachable


@dataclass(frozen=True)
class SearchJobResult:
    """What came out of a search job."""

    result: SearchResult
    dense: Measures
    pruned: Measures
    texts: dict[str, dict[str, Any]]
    warnings: tuple[str, ...] = ()
    recovered: Recovered | None = None
    saved: SavedCheckpoint | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def run(
    config: AdaPrunerConfig, options: SearchOptions, say: Callable[[str], None] = lambda _: None
) -> SearchJobResult:
    """Load, search, compact, recover where that is asked for, measure, save and prove.

    A job that was stopped goes on where it was when it is started again with the same arguments.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    clock = Stopwatch()
    run_as = _checked(config, options)
    model, tokenizer = options.load(clock, say)
    check_reachable(find_groups(model), config.prune_config)
    if options.recover is not None:
        check_recovery(model, options.recover, trust_remote_code=options.trust_remote_code)
    with clock("text"):
        texts, report = search_texts(config, tokenizer, model), load_evaluation(options, tokenizer)
        described, warnings = describe(config, texts, report, options.eval_text)
        rows = load_rows(options.recover, tokenizer, model) if options.recover else None
    if rows is not None:
        check_work_folder(work_folder(options.out), options.recover, rows, options.compute_dtype)
    measurer = Measurer(report, options.compute_dtype)
    result = search(model, texts, config, replace(run_as, dtype=measurer.dtype), say=say)
    if report is not None:
        say("measuring dense and pruned")
    with clock("evaluate"):
        dense = measurer.measure(model)
    dense_config = model.config.to_dict()
    with clock("compact"):
        compact(model, result.plan, corrections=result.corrections)
    with clock("evaluate"):
        pruned, ruined = measurer.measure_pruned(model)
    job = SearchJobResult(result, dense, pruned, described, warnings + ruined)

    def store(job: SearchJobResult) -> SearchJobResult:
        recipe = _recipe(config, options, job.recovered)
        saved = save_checkpoint(
            model, tokenizer, options, clock, say,
            plan=result.plan, recipe=recipe, report=summary(job), dense_config=dense_config,
        )  # fmt: skip
        job = replace(job, saved=saved, seconds=with_search(clock, result.seconds))
        write_report(saved.path, "search", _report_values(job, recipe), say)
        return job

    if rows is None:
        return store(job)
    work = work_folder(options.out)
    say(recovering(rows, work))
    found = recover_pruned(
        model, tokenizer, options.recover, rows, work,
        before=pruned, measurer=measurer, store=lambda: store(job).saved.path, clock=clock,
        trust_remote_code=options.trust_remote_code,
    )  # fmt: skip
    with training_kept(work):
        return store(replace(job, recovered=found, warnings=job.warnings + found.warnings))


def _checked(config: AdaPrunerConfig, options: SearchOptions) -> SearchRun:
    """Refuse what can be refused before a model is loaded; how the search runs."""
    run_as = options.check()
    check_spec(config.calibration, config.pool, default=config.pool)
    check_spec(config.search_text, config.windows + config.held_out, default=1)
    if options.recover is not None:
        options.recover.check_sources()
    return run_as


def _recipe(config: AdaPrunerConfig, options: SearchOptions, recovered: Recovered | None) -> dict[str, Any]:
    recipe = {"search": config.to_dict()} | options.recipe(study=options.study)
    return recipe if recovered is None else recipe | {"recovery": recovered.report.recipe()}


def _report_values(job: SearchJobResult, recipe: dict[str, Any]) -> dict[str, Any]:
    plan = job.result.plan
    values = job.result.to_dict() | summary(job)
    values |= {"texts": job.texts, "recipe": recipe, "versions": recipe["versions"]}
    values |= {"plan": plan_columns(plan), "kinds": list(plan.kinds)} | proof_values(job.saved)
    return values | {
        "seconds": job.seconds,
        "warnings": list(job.warnings),
        "objective": "loss above the dense model's, nats",
    }


def summary(job: SearchJobResult) -> dict[str, Any]:
    """The few numbers that a model card shows."""
    result, dense, pruned = job.result, job.dense, job.pruned
    values: dict[str, Any] = {
        "method": "adapruner",
        "ratio asked": result.plan.asked,
        "ratio reached": result.plan.reached,
        "parameters": {"dense": dense.params, "pruned": pruned.params},
        "winner": result.winner.name,
        "compensation": result.winner.compensation,
        "trials run": len(result.trials),
    } | measured_values(dense, pruned)
    if job.recovered is not None:
        values["recovery"] = job.recovered.numbers
    return values
