"""Job of ``pruneengine search``, AdaPruner: a model in, a checkpoint pruned by the best plan out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pruneengine.data.windows import check_spec
from pruneengine.jobs.checkpoint_job import CheckpointJob, CheckpointResult
from pruneengine.jobs.options import SearchOptions
from pruneengine.jobs.recover_pruned import Recovered, training_kept
from pruneengine.jobs.texts import load_evaluation
from pruneengine.model import find_groups
from pruneengine.report.values.search import search_summary, with_search
from pruneengine.report.values.structured import plan_columns
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.result import SearchResult
from pruneengine.search.adapruner.search import search
from pruneengine.search.adapruner.texts import search_texts
from pruneengine.search.run import SearchRun
from pruneengine.search.texts import describe
from pruneengine.structured.apply import compact
from pruneengine.structured.prune import check_reachable


@dataclass(frozen=True, kw_only=True)
class SearchJobResult(CheckpointResult):
    """Result of a search over plans.

    Attributes:
        result: the winner, the trials and the baselines.
        texts: every text of the search and of the report, with what they share.
    """

    result: SearchResult
    texts: dict[str, dict[str, Any]]


def run(
    config: AdaPrunerConfig, options: SearchOptions, say: Callable[[str], None] = lambda _: None
) -> SearchJobResult:
    """Load, search, compact, recover where that is asked for, measure, save and prove.

    A job that was stopped goes on where it was when it is started again with the same arguments.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    run_as = _checked(config, options)
    windows = {"calibration samples": max(config.lengths), "search windows": config.seqlen}
    job = CheckpointJob.load(options, say, windows)
    structure = find_groups(job.model)
    check_reachable(structure, config.prune_config)
    job.check_room(1 - config.ratio * structure.prunable_params(config.kinds) / structure.total_params)
    job.check_recovery(options.recover)
    with job.clock("text"):
        texts = search_texts(config, job.tokenizer, job.model)
        job.evaluation = load_evaluation(options, job.tokenizer)
        described, warnings = describe(config, texts, job.evaluation, options.eval_text)
        job.warnings += warnings
    planned = job.plan_recovery(options.recover)
    result = search(job.model, texts, config, replace(run_as, dtype=options.compute_dtype), say=say)
    if job.evaluation is not None:
        say("measuring dense and pruned")
    dense = job.dense()
    with job.clock("compact"):
        compact(job.model, result.plan, corrections=result.corrections)
    pruned = job.changed()

    def store(recovered: Recovered | None = None) -> SearchJobResult:
        """Save the model as it is now, with its report."""
        recipe = _recipe(config, options, recovered)
        numbers = search_summary(result, dense, pruned) | ({"recovery": recovered.numbers} if recovered else {})
        saved = job.store(plan=result.plan, recipe=recipe, report=numbers)
        done = SearchJobResult(
            result=result, texts=described, dense=dense, pruned=pruned, saved=saved, recovered=recovered,
            warnings=job.warnings, seconds=with_search(job.clock.seconds, result.seconds),
        )  # fmt: skip
        job.report(saved, "search", _report_values(done, numbers, recipe))
        return done

    recovered = job.recover(planned, pruned, store=lambda: store().saved.path)
    with training_kept(planned.work if planned else None):
        return store(recovered)


def _checked(config: AdaPrunerConfig, options: SearchOptions) -> SearchRun:
    """Refuse what can be refused before a model is loaded, and return how the search runs."""
    run_as = options.check()
    check_spec(config.calibration, config.pool, default=config.pool)
    check_spec(config.search_text, config.windows + config.held_out, default=1, role="evaluation")
    if options.recover is not None:
        options.recover.check_sources()
    return run_as


def _recipe(config: AdaPrunerConfig, options: SearchOptions, recovered: Recovered | None) -> dict[str, Any]:
    """Return the recipe: the search's config, the model, and the recovery where there was one."""
    recipe = {"search": config.to_dict()} | options.recipe(study=options.study)
    return recipe if recovered is None else recipe | {"recovery": recovered.report.recipe()}


def _report_values(job: SearchJobResult, numbers: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Return all values of the report: trials, numbers of the model card, texts, recipe, plan and times."""
    plan = job.result.plan
    values = job.result.to_dict() | numbers
    values |= {"texts": job.texts, "recipe": recipe, "versions": recipe["versions"]}
    values |= {"plan": plan_columns(plan), "kinds": list(plan.kinds)} | job.closing_values()
    return values | {"warnings": list(job.warnings), "objective": "loss above the dense model's, nats"}
