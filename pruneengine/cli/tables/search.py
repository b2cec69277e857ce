"""Tables of a search, by either method."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from pruneengine.cli.tables.structured import show_times
from pruneengine.jobs.search import SearchJobResult
from pruneengine.jobs.search_dsa import DsaJobResult
from pruneengine.search.adapruner.result import SearchResult


def show_search(console: Console, job: SearchJobResult) -> None:
    """Print the winner against the fixed metrics, what it is made of, and dense beside pruned."""
    result = job.result
    show_finals(console, result)
    if result.candidate is not None:
        for what, words in result.candidate.in_words().items():
            console.print(f"{what}: {words}")
    if result.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(result.importance.items())[:6])
        console.print(f"what mattered: {shares}")
    states = [trial.state for trial in result.trials if trial.illegal is None]
    repeats = sum(trial.origin == "repeat" for trial in result.trials)
    illegal = len(result.trials) - len(states)
    console.print(
        f"{len(result.trials)} trials: {states.count('complete')} to the end, {states.count('pruned')} stopped early, "
        f"{repeats} answered from cache, {illegal} without a legal plan"
    )
    plan = result.plan
    console.print(
        f"asked to remove {plan.asked:.2%} of {' and '.join(plan.kinds)}; the plan removes {plan.reached:.2%}: "
        f"{plan.params_before:,} => {plan.params_after:,} parameters"
    )
    if job.dense.perplexity and job.pruned.perplexity:
        console.print(
            f"perplexity on text that the search never saw ({job.dense.perplexity.tokens:,} tokens): "
            f"dense {job.dense.perplexity.perplexity:.2f}, pruned {job.pruned.perplexity.perplexity:.2f}"
        )
    show_times(console, job.seconds)


def show_finals(console: Console, result: SearchResult) -> None:
    """Print the perplexity on search and held-out blocks: finalists, then the fixed metrics."""
    table = Table(
        title=f"perplexity, {result.plan.reached:.1%} removed, {result.plan.shape} widths", title_justify="left"
    )
    for column in ("", "search", "held out", "compensated"):
        table.add_column(column, justify="right" if column else "left")
    dense = result.dense["search"], result.dense["held out"]
    table.add_row("dense", *(f"{math.exp(loss):.2f}" for loss in dense), "")
    for finalist in result.finalists:
        cells = _perplexities((*dense, dense[1]), finalist.value, finalist.held_out, finalist.compensated)
        table.add_row(finalist.name, *cells, style="bold" if finalist is result.winner else None)
    for baseline in sorted(result.baselines, key=lambda b: math.inf if b.value is None else b.value):
        if baseline.value is None:
            table.add_row(baseline.name, "no legal plan", "", "")
        else:
            table.add_row(baseline.name, *_perplexities(dense, baseline.value, baseline.held_out), "")
    console.print(table)
    if result.winner.compensation != "none":
        console.print(f"the winner's o_proj and down_proj are compensated by {result.winner.compensation}")


def show_dsa(console: Console, job: DsaJobResult) -> None:
    """Print the finalists, the outcome of the trials, and dense beside pruned."""
    result = job.result
    table = Table(title="loss above the dense model's, nats")
    for column in ("", "function", "fast", "full", "held out"):
        table.add_column(column, justify="left" if column in ("", "function") else "right")
    for judged in result.finalists:
        entrant = judged.entrant
        numbers = (f"{loss:.4f}" for loss in (entrant.fast, judged.full, judged.held_out))
        table.add_row(entrant.name, str(entrant.function or ""), *numbers)
    console.print(table)
    winner = dict.fromkeys((result.winner.entrant.name, result.plan.allocation))
    console.print(f"winner: {', '.join(winner)}")
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


def _perplexities(dense: tuple[float, ...], *above: float | None) -> tuple[str, ...]:
    """Return perplexities of losses above the dense model's, as text; None is left empty."""
    return tuple(
        "" if extra is None else f"{math.exp(min(loss + extra, 700)):.2f}"
        for loss, extra in zip(dense, above, strict=True)
    )
