"""Page of a search for an allocation function, from the values of its ``report.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pruneengine.report.figures.layers import lines
from pruneengine.report.figures.search import history
from pruneengine.report.page import Fact, Figure, Page, Section, Table
from pruneengine.report.pages.checkpoint_sections import proof_section
from pruneengine.report.pages.frame import Recipe, framed
from pruneengine.report.pages.parts import search_times, texts_table, trial_cells, values_in_words
from pruneengine.report.words import NOTHING, count, duration, number, percent, signed

METRIC = "loss above the dense model's, nats"
# Drawn beside the winner's.
COMPARED = ("uniform", "owl", "dsa")
_COUNTS = {
    "drawn": "functions drawn",
    "invalid": "gave no allocation: their values are not finite, or the same for all layers",
    "repeats": "gave an allocation that was known by then, and cost no forward pass",
    "distinct allocations": "distinct allocations were evaluated",
    "stopped early": "of them were stopped as plainly worse than the best so far",
    "not finite": "of them ruined the model: the loss is not finite",
    "evaluated to the end": "of them were evaluated to the end",
}


def dsa_page(values: Mapping[str, Any]) -> Page:
    """Return the page. "method", "sparsity" and "trials" must be there; sections show what else the values hold.

    Args:
        values: :meth:`pruneengine.search.dsa.result.DsaResult.to_dict`, with what else is known: "perplexity",
            "layers", "texts", "recipe", "speed notes", "proof", "seconds", "warnings".
    """
    recipe = Recipe.of(values, "search")
    pattern = "" if values.get("pattern") in (None, "unstructured") else f" as {values['pattern']}"
    return framed(
        values,
        title="Search for an allocation function (DSA)",
        subtitle=f"{percent(values['sparsity'], 1)} of the linears' weights{pattern}, by {values.get('pruner')}, "
        f"{len(values['trials'])} trials",
        facts=_facts(values),
        sections=(
            _found(values),
            _allocations(values),
            _history(values),
            _correlation(values),
            Section("What gets faster, and what does not", tuple(values.get("speed notes", ()))),
            proof_section(values),
            Section("Texts", tables=(texts_table(values.get("texts") or {}),)),
            *recipe.sections(_times(values), seed=values.get("seed")),
            Section("All trials", tables=(_all(values["trials"]),)),
        ),
    )


def _facts(values: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield perplexity, the winner's held-out loss, the number of trials and the time."""
    if sides := values.get("perplexity"):
        tokens = f" on {count(values['perplexity tokens'])} unseen tokens" if "perplexity tokens" in values else ""
        yield Fact("Perplexity", number(sides["pruned"]), f"dense {number(sides['dense'])}{tokens}")
    best, fixed = values.get("best") or {}, [row for row in values.get("finalists", ()) if row["name"] in COMPARED]
    if best:
        rival = min(fixed, key=lambda row: row["held_out"], default=None)
        note = f"best fixed allocation {number(rival['held_out'])}, {rival['name']}" if rival else ""
        yield Fact("Loss above dense, held out", number(best["held_out"]), note)
    counts = values.get("counts") or {}
    if counts:
        note = f"{counts['distinct allocations']} distinct allocations, {counts['evaluated to the end']} to the end"
        yield Fact("Trials", count(counts["drawn"]), note)
    if seconds := values.get("seconds"):
        yield Fact("Time", duration(sum(v or 0 for v in _outer(seconds).values())))


def _found(values: Mapping[str, Any]) -> Section:
    """Return the section of the winner and the finalists."""
    best = values.get("best") or {}
    if not best:
        return Section("What was found")
    text = f"The best is {best['name']}"
    text += f", the function {best['function']}." if best.get("function") else ", a fixed allocation."
    text += " It was chosen among allocations that were pruned in full, on all windows: no trial saw those held out."
    rows = tuple(
        (
            row["name"], row["function"] or NOTHING, number(row["fast"]), number(row["value"]), number(row["held_out"]),
            signed(row["held_out"] - best["held_out"]) if row["name"] != best["name"] else NOTHING,
        )
        for row in values.get("finalists", ())
    )  # fmt: skip
    columns = ("", "function", "fast", "full", "held out", "against the best")
    caption = "Loss above the dense model's, nats: as the trials measured it, and of full prunes"
    return Section("What was found", (text,), (Table(columns, rows, caption, left=2),))


def _allocations(values: Mapping[str, Any]) -> Section:
    """Return the section of every layer's sparsity, the winner's beside the fixed allocations."""
    allocations: Mapping[str, list[float]] = values.get("allocations") or {}
    best = str((values.get("best") or {}).get("name"))
    shown = {name: allocations[name] for name in dict.fromkeys((best, *COMPARED)) if name in allocations}
    if not shown:
        return Section("Sparsity of every layer")
    caption = "Sparsity of every layer: the winner's beside the fixed allocations."
    first = next(iter(shown.values()))
    alt = f"The winner's goes from {percent(min(first), 1)} to {percent(max(first), 1)}."
    series = {name: list(enumerate(sparsities)) for name, sparsities in shown.items()}
    cells = tuple(
        (str(layer), *(percent(sparsities[layer]) for sparsities in shown.values())) for layer in range(len(first))
    )
    return Section(
        "Sparsity of every layer",
        figures=(Figure(lines(series, "layer", "sparsity"), caption, alt),),
        tables=(Table(("layer", *shown), cells, "Every layer", folded=True),),
    )


def _history(values: Mapping[str, Any]) -> Section:
    """Return the section of every trial's fast loss, and of the trials' outcomes."""
    trials = [
        trial | {"value": trial["estimate"], "state": "illegal" if trial.get("illegal") else trial["state"]}
        for trial in values["trials"]
    ]
    fixed = [
        {"name": row["name"], "value": row["fast"]} for row in values.get("finalists", ()) if row["name"] in COMPARED
    ]
    caption = (
        "Every trial's fast loss, smaller is better; the line is the best so far, a cross an estimate from the tokens "
        "that a stopped trial ran. Dashed: fixed allocations."
    )
    counts = values.get("counts") or {}
    table = Table(("", ""), tuple((count(counts[key]), words) for key, words in _COUNTS.items() if key in counts))
    text = (values["outcome"],) if "outcome" in values else ()
    figures = (Figure(history(trials, fixed, METRIC), caption, values_in_words(trials), wide=True),)
    return Section("History", text, (table,), figures)


def _correlation(values: Mapping[str, Any]) -> Section:
    """Return the section that compares fast and full losses."""
    correlation = values.get("correlation") or {}
    if not correlation:
        return Section("Fast and full loss")
    ranked = sorted(correlation.get("points", ()), key=lambda point: point["fast"])
    rows = tuple((point["name"], number(point["fast"]), number(point["full"])) for point in ranked)
    return Section(
        "Fast and full loss", (correlation["words"],), (Table(("", "fast", "full"), rows, "All of them", folded=True),)
    )


def _outer(seconds: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the seconds by stage without those inside the trials."""
    return {stage: spent for stage, spent in seconds.items() if "trials: " not in stage}


def _times(values: Mapping[str, Any]) -> Section:
    """Return the seconds by stage, and those of the trials' own stages."""
    seconds = values.get("seconds") or {}
    inside = {stage.rpartition("trials: ")[2]: spent for stage, spent in seconds.items() if "trials: " in stage}
    return search_times(_outer(seconds), inside)


def _all(trials: list[dict[str, Any]]) -> Table:
    """Return the table of all trials with their functions."""
    rows = tuple(
        (
            *trial_cells(trial), trial["function"], number(trial["estimate"]), str(trial["segments"]),
        )
        for trial in trials
    )  # fmt: skip
    columns = ("trial", "origin", "state", "function", "fast loss", "segments")
    return Table(columns, rows, f"{len(trials)} trials", left=4, folded=True)
