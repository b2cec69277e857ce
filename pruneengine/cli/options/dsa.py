"""The options of search that belong to ``--method dsa``, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pruneengine.cli.app import flags, given, out, run_job

if TYPE_CHECKING:
    from pruneengine.jobs.search_dsa import DsaJobResult
    from pruneengine.jobs.search_options import SearchOptions

PANEL = "Allocation functions (--method dsa)"


_option = partial(typer.Option, rich_help_panel=PANEL)
Sparsity = Annotated[
    float | None, _option(help="Fraction of the weights that become zero, of all linears but those of --ignore.")
]
Pruner = Annotated[str | None, _option(help="wanda, magnitude or sparsegpt (wanda).")]
PatternOption = Annotated[str | None, _option("--pattern", help="unstructured, or N:M: N weights kept of every M.")]
Population = Annotated[int | None, _option(help="The best so many allocations are parents (50).")]
Plateau = Annotated[str | None, _option(help="Trials without a better one that end the search (300), or none.")]
Nsamples = Annotated[int | None, _option(help="Calibration samples (32).")]
CalibrationSeqlen = Annotated[int | None, _option(help="Tokens a calibration sample (128).")]
Correlate = Annotated[int | None, _option(help="Allocations that fast and full losses are compared on (20); 0: none.")]
Ignore = Annotated[
    str | None, _option(metavar="NAMES", help="Linears that stay dense, as of prune: down_proj,re:layers\\.0\\.")
]
Mode = Annotated[str | None, _option(help="Of the final prunes: sequential, two-pass or one-shot (sequential).")]


def run_dsa(
    recipe: Path | None,
    own: Mapping[str, Any],
    structured: Mapping[str, Any],
    options: SearchOptions,
) -> None:
    """Run the job and print what it found; None among the values was not given.

    Args:
        recipe: whose ``search`` section holds options; ``own`` wins.
        own: options of :class:`pruneengine.search.dsa.config.DsaConfig`; plateau may be "none".
        structured: options of the search over structured plans, which are refused.
        options: of the job.

    Raises:
        ValueError: options of the other search, or values that are refused.
    """
    from pruneengine.jobs.search_dsa import run
    from pruneengine.search.dsa.config import DsaConfig
    from pruneengine.structured.config import read_recipe

    if odd := given(structured):
        raise ValueError(
            f"{flags(odd)}: options of --method adapruner, which removes heads and channels; leave them out"
        )
    values = (read_recipe(recipe, "search") if recipe else {}) | given(own)
    values |= {name: None for name in ("plateau", "stop") if values.get(name) == "none"}
    if isinstance(values.get("plateau"), str):
        values["plateau"] = _whole(values["plateau"])
    if "sparsity" not in values and "pattern" not in values:
        raise ValueError("give --sparsity S, or --pattern N:M (or a --recipe that holds one)")
    config = DsaConfig.from_dict(values)
    found = run_job(run, config, options)
    show_dsa(out, found)


def show_dsa(console: Console, job: DsaJobResult) -> None:
    """The finalists, what became of the trials, and dense beside pruned."""
    result = job.result
    table = Table(title="loss above the dense model's, nats")
    for column, justify in (
        ("", "left"),
        ("function", "left"),
        ("fast", "right"),
        ("full", "right"),
        ("held out", "right"),
    ):
        table.add_column(column, justify=justify)
    for judged in result.finalists:
        entrant = judged.entrant
        numbers = (f"{loss:.4f}" for loss in (entrant.fast, judged.full, judged.held_out))
        table.add_row(entrant.name, str(entrant.function or ""), *numbers)
    console.print(table)
    console.print(f"winner: {result.winner.entrant.name}, {result.plan.allocation}")
    if result.function is None:
        console.print("no function was better: none is saved")
    console.print(", ".join(f"{what}: {count}" for what, count in result.counts.items()))
    console.print(result.outcome)
    console.print(result.correlation.in_words())
    if job.dense.perplexity and job.pruned.perplexity:
        dense, pruned = job.dense.perplexity, job.pruned.perplexity
        console.print(
            f"perplexity on {dense.tokens:,} unseen tokens: {dense.perplexity:.3f} -> {pruned.perplexity:.3f}"
        )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"plateau must be a number of trials or none, got {text!r}") from None
