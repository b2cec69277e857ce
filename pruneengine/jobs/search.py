"""A search from the model's name to a measured and proved checkpoint. What ``pruneengine search`` runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pruneengine.apply import compact
from pruneengine.checkpoint import SavedCheckpoint, save
from pruneengine.data import check_spec, evaluation_windows
from pruneengine.engine import rehearse
from pruneengine.files import check_writable
from pruneengine.jobs.checks import check_evaluation, check_out
from pruneengine.jobs.recover_pruned import Recovered, recover_pruned
from pruneengine.jobs.versions import versions
from pruneengine.jobs.yardstick import Yardstick
from pruneengine.loading import load_model
from pruneengine.progress import Stopwatch
from pruneengine.recovery import RecoverConfig, check_recovery, load_rows, work_folder
from pruneengine.report import write_report
from pruneengine.report.values import Measures, plan_columns
from pruneengine.search.adapruner import SearchRun, search
from pruneengine.search.config import SearchConfig
from pruneengine.search.result import SearchResult
from pruneengine.search.texts import describe, search_texts
from pruneengine.structure import find_groups


@dataclass(frozen=True)
class SearchOptions:
    """Everything about a search job but the search itself.

    Attributes:
        source: model folder, GGUF file or hub name.
        out: the checkpoint's folder.
        study, storage: of the Optuna study; None for "adapruner" in a journal file in the folder ``<out>-search``,
            where the pool's statistics are kept too.
        workers, time_limit: as of :class:`SearchRun`.
        eval_text, eval_seqlen, eval_windows: the text of the report, which the search never sees; None for none.
        recover: train the pruned model before it is saved; None for not.
    """

    source: str
    out: Path
    overwrite: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    study: str = "adapruner"
    storage: str | None = None
    workers: int = 1
    time_limit: float | None = None
    eval_text: str | None = None
    eval_seqlen: int = 512
    eval_windows: int | None = 64
    proof: bool = True
    trust_remote_code: bool = False
    recover: RecoverConfig | None = None

    @property
    def folder(self) -> Path:
        """Where the search keeps what it can go on from."""
        return self.out.with_name(f"{self.out.name}-search")


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


def run(config: SearchConfig, options: SearchOptions, say: Callable[[str], None] = lambda _: None) -> SearchJobResult:
    """Load, search, compact, recover where that is asked for, measure, save and prove.

    A job that was stopped goes on where it was when it is started again with the same arguments.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    clock = Stopwatch()
    run_as = _checked(config, options)
    say(f"loading {options.source}")
    with clock("load"):
        model, tokenizer = load_model(options.source, options.dtype, options.device, options.trust_remote_code)
    rehearse(find_groups(model), config.prune_config)
    if options.recover is not None:
        check_recovery(model, options.recover)
    with clock("text"):
        texts, report = search_texts(config, tokenizer, model), None
        if options.eval_text:
            report = evaluation_windows(options.eval_text, tokenizer, options.eval_seqlen, options.eval_windows)
        described, warnings = describe(config, texts, report, options.eval_text)
        rows = load_rows(options.recover, tokenizer, model) if options.recover else None
    yardstick = Yardstick(report, options.dtype, options.device)
    result = search(model, texts, config, replace(run_as, dtype=yardstick.dtype), say=say)
    if report is not None:
        say("measuring dense and pruned")
    with clock("evaluate"):
        dense = yardstick.measure(model)
    dense_config = model.config.to_dict()
    with clock("compact"):
        compact(model, result.plan, corrections=result.corrections)
    with clock("evaluate"):
        pruned, ruined = yardstick.measure_changed(model)
    job = SearchJobResult(result, dense, pruned, described, warnings + ruined)

    def store(job: SearchJobResult) -> SearchJobResult:
        say(f"saving {options.out}" + (", and reopening it in a fresh process" if options.proof else ""))
        recipe = _recipe(config, options, job.recovered)
        with clock("save"):
            saved = save(
                model, tokenizer, options.out,
                plan=result.plan, recipe=recipe, report=summary(job), overwrite=options.overwrite,
                dense_config=dense_config, proof=options.proof,
            )  # fmt: skip
        seconds = clock.seconds | {f"search: {stage}": spent for stage, spent in result.seconds.items()}
        job = replace(job, saved=saved, seconds=seconds)
        write_report(saved.path, "search", _report_values(job, recipe), say)
        return job

    if rows is None:
        return store(job)
    work = work_folder(options.out)
    say(f"recovering on {len(rows)} rows; checkpoints in {work}")
    found = recover_pruned(
        model, tokenizer, options.recover, rows, work,
        before=pruned, yardstick=yardstick, store=lambda: store(job).saved.path, clock=clock,
    )  # fmt: skip
    job = store(replace(job, recovered=found, warnings=job.warnings + found.warnings))
    shutil.rmtree(work, ignore_errors=True)
    return job


def _checked(config: SearchConfig, options: SearchOptions) -> SearchRun:
    """Refuse what can be refused before a model is loaded; how the search runs."""
    check_out(options.out, options.overwrite, options.source)
    check_spec(config.calibration, config.pool, default=config.pool)
    check_spec(config.search_text, config.windows + config.held_out, default=1)
    check_evaluation(options.eval_text, options.eval_seqlen, options.eval_windows)
    if options.recover is not None:
        options.recover.check_sources()
    check_writable(options.folder)
    storage = options.storage or f"journal:{options.folder / 'study.journal'}"
    return SearchRun(options.study, storage, options.folder, options.workers, options.time_limit)


def _recipe(config: SearchConfig, options: SearchOptions, recovered: Recovered | None) -> dict[str, Any]:
    recipe = {
        "search": config.to_dict(),
        "source": options.source,
        "dtype": str(options.dtype).removeprefix("torch."),
        "study": options.study,
        "versions": versions(),
    }
    return recipe if recovered is None else recipe | {"recovery": recovered.report.recipe()}


def _report_values(job: SearchJobResult, recipe: dict[str, Any]) -> dict[str, Any]:
    plan = job.result.plan
    values = job.result.to_dict() | summary(job)
    values |= {"texts": job.texts, "recipe": recipe, "versions": recipe["versions"]}
    values |= {"plan": plan_columns(plan), "kinds": list(plan.kinds)}
    if job.saved.proof is not None:
        values["proof"] = asdict(job.saved.proof)
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
    }
    if dense.perplexity:
        after = pruned.perplexity.perplexity if pruned.perplexity else None
        values["perplexity"] = {"dense": dense.perplexity.perplexity, "pruned": after}
        values["perplexity tokens"] = dense.perplexity.tokens
    if job.recovered is not None:
        values["recovery"] = job.recovered.numbers
    return values
