"""Page of a search, from the values of its ``report.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pruneengine.report.figures.search import BARS, drawn_baselines, history, importance, pareto, pareto_front
from pruneengine.report.page import Fact, Figure, Page, Section, Table
from pruneengine.report.pages.checkpoint_sections import proof_section, recovery_facts, recovery_section
from pruneengine.report.pages.frame import Recipe, framed
from pruneengine.report.pages.parts import (
    pairs,
    search_times,
    text_overlap,
    texts_table,
    trial_cells,
    values_in_words,
)
from pruneengine.report.pages.plan_section import plan_section
from pruneengine.report.pages.prune import measured_section
from pruneengine.report.words import NOTHING, count, duration, number, percent, plain, signed

# What a candidate may cost: by its key the label of the axis, and the words of a sentence.
COSTS = {
    "parameters": ("parameters", "parameters"),
    "latency": ("latency, s", "latency"),
    "kv_bytes": ("KV cache, bytes a token", "the bytes of KV cache that a token takes"),
}


def search_page(values: Mapping[str, Any]) -> Page:
    """Return the page. "method" and "trials" must be there; sections show what else the values hold.

    Args:
        values: "method", "ratio", "shape", "trials" (``{"number", "state", "value", "params", "seconds", "origin"}``,
            and what of :data:`COSTS` is known; smaller values are better), "baselines" (``{"name", "value", "held_out",
            "reached"}``, and costs), "best", "importance", "texts", "versions", "seed", "seconds", "recipe",
            "warnings", "objective": what a value is; and of the checkpoint "plan" (with "kinds", "ratio asked", "ratio
            reached"), "parameters", "recovery", "proof" and :func:`measured_values`.
    """
    trials = [_trial(trial) for trial in values["trials"]]
    best = values.get("best") or {}
    baselines = [{"value": None, "held_out": None, "reached": None} | dict(b) for b in values.get("baselines") or ()]
    metric = str(values.get("objective") or "value")
    asked = "" if values.get("ratio") is None else f"{percent(values['ratio'], 1)} of the prunable parameters, "
    asked += f"{values['shape']} shape, " if values.get("shape") else ""
    texts = values.get("texts") or {}
    recipe = Recipe.of(values, "search")
    return framed(
        values,
        title=f"Search with {values['method']}",
        subtitle=asked + f"{len(trials)} trials",
        facts=(*_measured(values), *_facts(best, baselines, trials, values.get("seconds"))),
        sections=(
            _found(best, baselines, metric),
            measured_section(values),
            _history(trials, baselines, metric),
            *((plan_section(values),) if values.get("plan") else ()),
            _importance(values.get("importance") or {}),
            _pareto(trials, baselines, metric),
            recovery_section(values),
            proof_section(values),
            Section("Texts", _text_note(texts), (texts_table(texts),)),
            *recipe.sections(search_times(values.get("seconds"), _trial_seconds(trials)), seed=values.get("seed")),
            Section("All trials", tables=(_all(trials),)),
        ),
    )


def _trial(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial with all keys. One without a legal plan was not stopped early: nothing of it was evaluated."""
    full = {"value": None, "params": {}, "seconds": {}, "origin": "sampler"} | dict(trial)
    return full | {"state": "illegal"} if full.get("illegal") else full


def _least(rows: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """Return the row with the least value of a key; None where no row has one."""
    return min((row for row in rows if row[key] is not None), key=lambda row: row[key], default=None)


def _measured(values: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield dense and pruned, where the checkpoint was measured."""
    for label, key, form in (("Parameters", "parameters", count), ("Perplexity", "perplexity", number)):
        if values.get(key):
            tokens = f" on {count(values['perplexity tokens'])} unseen tokens" if key == "perplexity" else ""
            yield Fact(label, form(values[key]["pruned"]), f"dense {form(values[key]['dense'])}{tokens}")
    yield from recovery_facts(values)


def _facts(
    best: Mapping[str, Any], baselines: list[dict[str, Any]], trials: list[dict[str, Any]], seconds: Any
) -> Iterator[Fact]:
    """Yield the best values, the number of trials and the time."""
    for label, key in (("Best value", "value"), ("The same, held out", "held_out")):
        if best.get(key) is not None:
            rival = _least(baselines, key)
            note = f"best baseline {number(rival[key])}, {rival['name']}" if rival else ""
            yield Fact(label, number(best[key]), note)
    states = [trial["state"] for trial in trials]
    words = {"complete": "complete", "pruned": "stopped early", "illegal": "without a legal plan", "fail": "failed"}
    note = ", ".join(f"{states.count(state)} {what}" for state, what in words.items() if state in states)
    yield Fact("Trials", str(len(trials)), note)
    total = sum(v or 0 for v in seconds.values()) if isinstance(seconds, Mapping) else seconds
    if total is not None:
        yield Fact("Time", duration(total), f"{duration(total / len(trials))} a trial" if trials else "")


def _found(best: Mapping[str, Any], baselines: list[dict[str, Any]], metric: str) -> Section:
    """Return the section of the best candidate, beside the baselines."""
    paragraphs = []
    if best:
        name = best.get("name") or f"trial {plain(best.get('number'))}"
        text = f"The best is {name}, {metric} {number(best.get('value'))}"
        if best.get("held_out") is not None:
            text += f", and {number(best['held_out'])} on text that no trial saw"
        if best.get("compensation") not in (None, "none"):
            text += f" (compensated: {best['compensation']})"
        paragraphs.append(text + ".")
        for label in ("data", "metric", "allocation"):
            if best.get(label):
                paragraphs.append(f"{label.capitalize()}: {best[label]}.".replace("..", "."))
    rows = [(b["name"], b["value"], b["held_out"], b["reached"]) for b in baselines]
    if best and rows:
        rows.append(("the search's best", best.get("value"), best.get("held_out"), best.get("reached")))
    # By the value, which all have; only the best baselines are measured on held-out text.
    reference = best.get("value")
    rows.sort(key=lambda row: (row[1] is None, row[1] or 0))
    cells = tuple(
        (name, number(value), number(held), percent(reached, 1), _difference(row[1], reference))
        for row in rows
        for name, value, held, reached in [row]
    )
    columns = ("", "searched", "held out", "removed", "to the best")
    tables = [Table(columns, cells, f"Beside the baselines: {metric}")]
    if best.get("params"):
        tables.append(pairs(best["params"], "Parameters of the best trial"))
    return Section("What was found", tuple(paragraphs), tuple(tables))


def _difference(value: float | None, reference: float | None) -> str:
    """Return the signed difference to a reference; nothing for the reference itself."""
    return NOTHING if value is None or reference is None or value == reference else signed(value - reference)


def _history(trials: list[dict[str, Any]], baselines: list[dict[str, Any]], metric: str) -> Section:
    """Return the section of every trial's value."""
    caption = "Every trial's value, smaller is better; the line is the best so far."
    if shown := len(drawn_baselines(trials, baselines)):
        some = f"the best {shown} of {len(baselines)} baselines" if shown < len(baselines) else "the baselines"
        caption += f" Dashed: {some}."
    picture = history(trials, baselines, metric)
    return Section("History", figures=(Figure(picture, caption, values_in_words(trials), wide=True),))


def _importance(shares: Mapping[str, float | None]) -> Section:
    """Return the section of the parameters' importance."""
    known = {name: share for name, share in shares.items() if share is not None}
    if not known:
        return Section("Importance")
    ranked = sorted(known.items(), key=lambda item: -item[1])
    alt = ", ".join(f"{name} {percent(share, 1)}" for name, share in ranked[:5])
    caption = "Share of the values' variance that a parameter explains"
    caption += f"; the first {BARS} of {len(known)}." if len(known) > BARS else "."
    table = Table(
        ("parameter", "share"), tuple((name, percent(share, 1)) for name, share in ranked), "All shares", folded=True
    )
    return Section(
        "What mattered",
        figures=(Figure(importance(known), caption, alt),),
        tables=(table,) if len(known) > BARS else (),
    )


def _pareto(trials: list[dict[str, Any]], baselines: list[dict[str, Any]], metric: str) -> Section:
    """Return loss against cost.

    Plans of the same size can still cost differently: heads take cache, channels do not.
    """
    figures, paragraphs = [], []
    done = [trial for trial in trials if trial["state"] == "complete" and trial["value"] is not None]
    for key, (label, words) in COSTS.items():
        points = [{"x": trial[key], "y": trial["value"]} for trial in done if trial.get(key) is not None]
        known = [b for b in drawn_baselines(trials, baselines) if b.get(key) is not None]
        points += [{"x": b[key], "y": b["value"], "name": b["name"]} for b in known]
        costs = {point["x"] for point in points}
        if len(costs) == 1:
            paragraphs.append(f"All plans are alike in {words}, {count(*costs)}: there is nothing to trade.")
        if len(costs) < 2:
            continue
        front = pareto_front(points)
        ends = f"from {number(front[0]['y'])} to {number(front[-1]['y'])}"
        alt = f"{len(points)} points, {len(front)} of them on the front, {ends}."
        caption = f"{metric[:1].upper()}{metric[1:]} against {words}; what nothing else beats in both is joined."
        if known:
            caption += " Diamonds: baselines."
        figures.append(Figure(pareto(points, label, metric), caption, alt))
    return Section("Loss against cost", tuple(paragraphs), figures=tuple(figures))


def _text_note(texts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sentence that names texts with overlap; none without any."""
    shared = [name for name, text in texts.items() if text_overlap(text)]
    return (f"Overlap with other texts was found for: {', '.join(shared)}.",) if shared else ()


def _trial_seconds(trials: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of all trials together, by stage."""
    stages: dict[str, float] = {}
    for trial in trials:
        for stage, spent in trial["seconds"].items():
            stages[stage] = stages.get(stage, 0.0) + (spent or 0.0)
    return stages


def _all(trials: list[dict[str, Any]]) -> Table:
    """Return the table of all trials with their parameters."""
    names = list(dict.fromkeys(name for trial in trials for name in trial["params"]))
    rows = tuple(
        (
            *trial_cells(trial),
            number(trial["value"]), duration(sum(s or 0 for s in trial["seconds"].values())),
            *(plain(trial["params"].get(name)) for name in names),
        )
        for trial in trials
    )  # fmt: skip
    columns = ("trial", "origin", "state", "value", "time", *names)
    return Table(columns, rows, f"{len(trials)} trials with their parameters", left=3, folded=True)
