"""A search from the model's name to a measured and proved checkpoint. What ``pruneengine search`` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pruneengine.apply import compact
from pruneengine.checkpoint import SavedCheckpoint, check_output, save
from pruneengine.data import check_spec, evaluation_windows
from pruneengine.engine import rehearse
from pruneengine.evaluate import best_dtype, model_size, perplexity
from pruneengine.files import check_writable
from pruneengine.jobs.versions import versions
from pruneengine.loading import load_model
from pruneengine.progress import Stopwatch
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
    saved: SavedCheckpoint
    texts: dict[str, dict[str, Any]]
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def run(config: SearchConfig, options: SearchOptions, say: Callable[[str], None] = lambda _: None) -> SearchJobResult:
    """Load, search, compact, measure, save and prove.

    A job that was stopped goes on where it was when it is started again with the same arguments.

    Raises:
        ValueError, OSError: before work is spent wherever that can be known.
    """
    clock = Stopwatch()
    out = check_output(options.out, options.overwrite)
    check_spec(config.calibration, config.pool, default=config.pool)
    check_spec(config.search_text, config.windows + config.held_out, default=1)
    if options.eval_text:
        check_spec(options.eval_text, options.eval_windows, default=1)
    check_writable(options.folder)
    dtype = best_dtype(options.device) if options.dtype == torch.float32 else None
    storage = options.storage or f"journal:{options.folder / 'study.journal'}"
    run_as = SearchRun(options.study, storage, options.folder, options.workers, options.time_limit, dtype)
    say(f"loading {options.source}")
    with clock("load"):
        model, tokenizer = load_model(options.source, options.dtype, options.device, options.trust_remote_code)
    rehearse(find_groups(model), config.prune_config)
    with clock("text"):
        texts, report = search_texts(config, tokenizer, model), None
        if options.eval_text:
            report = evaluation_windows(options.eval_text, tokenizer, options.eval_seqlen, options.eval_windows)
        described, warnings = describe(config, texts, report, options.eval_text)
    result = search(model, texts, config, run_as, say=say)
    dense = Measures(*model_size(model))
    if report is not None:
        say("measuring dense and pruned")
        with clock("evaluate"):
            dense = replace(dense, perplexity=perplexity(model, report, dtype=dtype))
    dense_config = model.config.to_dict()
    with clock("compact"):
        compact(model, result.plan, corrections=result.corrections)
    pruned = Measures(*model_size(model))
    if report is not None:
        with clock("evaluate"):
            pruned = replace(pruned, perplexity=perplexity(model, report, dtype=dtype))
    say(f"saving {out}" + (", and reopening it in a fresh process" if options.proof else ""))
    recipe = {
        "search": config.to_dict(),
        "source": options.source,
        "dtype": str(options.dtype).removeprefix("torch."),
        "study": options.study,
        "versions": versions(),
    }
    numbers = summary(result, dense, pruned)
    with clock("save"):
        saved = save(
            model, tokenizer, out,
            plan=result.plan, recipe=recipe, report=numbers, overwrite=options.overwrite,
            dense_config=dense_config, proof=options.proof,
        )  # fmt: skip
    seconds = clock.seconds | {f"search: {stage}": spent for stage, spent in result.seconds.items()}
    values = result.to_dict() | numbers | {"texts": described, "recipe": recipe, "versions": versions()}
    values |= {"plan": plan_columns(result.plan), "kinds": list(result.plan.kinds)}
    values |= {"seconds": seconds, "warnings": list(warnings), "objective": "loss above the dense model's, nats"}
    write_report(saved.path, "search", values, say)
    return SearchJobResult(result, dense, pruned, saved, described, warnings, seconds)


def summary(result: SearchResult, dense: Measures, pruned: Measures) -> dict[str, Any]:
    """The few numbers that a model card shows."""
    values: dict[str, Any] = {
        "method": "adapruner",
        "ratio asked": result.plan.asked,
        "ratio reached": result.plan.reached,
        "parameters": {"dense": dense.params, "pruned": pruned.params},
        "winner": result.winner.name,
        "compensation": result.winner.compensation,
        "trials run": len(result.trials),
    }
    if dense.perplexity and pruned.perplexity:
        values["perplexity"] = {"dense": dense.perplexity.perplexity, "pruned": pruned.perplexity.perplexity}
        values["perplexity tokens"] = dense.perplexity.tokens
    return values
