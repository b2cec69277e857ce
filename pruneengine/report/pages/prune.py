"""Page of a prune, from the values of its ``report.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pruneengine.model import part_of
from pruneengine.report.figures.layers import lines, loss_curves, score_spread
from pruneengine.report.page import Fact, Figure, Page, Section
from pruneengine.report.pages.checkpoint_sections import (
    compensation_section,
    proof_section,
    recovery_facts,
    recovery_section,
)
from pruneengine.report.pages.frame import Recipe, framed
from pruneengine.report.pages.parts import Row, before_and_after, times
from pruneengine.report.pages.plan_section import KINDS, plan_section
from pruneengine.report.words import change, count, number, percent, short_count, size, with_error

SMOKE_TEXT = (
    "builtin text is for smoke tests (Python's own documentation); report results on wikitext2, c4 or ptb instead"
)


def prune_page(values: Mapping[str, Any]) -> Page:
    """Return the page. Only the summary's first four keys must be there; sections show what else the values hold.

    Args:
        values: :func:`summary`, with what else is known: ``details``, "source", "recipe",
            "hashes", "recovery", "proof", "prompt" and "continuation", "seconds", "warnings".
    """
    recipe = Recipe.of(values, "config")
    return framed(
        values,
        title=f"{recipe.model(values)}, pruned by {values['method']}",
        subtitle=f"{percent(values['ratio reached'], 1)} of the prunable parameters removed, "
        f"{percent(values['ratio asked'], 1)} asked for",
        facts=_facts(values),
        sections=(
            measured_section(values, recipe.calibration),
            plan_section(values),
            scores_section(values),
            _blend(values),
            _fit(values),
            compensation_section(values),
            recovery_section(values),
            proof_section(values),
            *recipe.sections(times(values.get("seconds")), values.get("hashes"), recipe.config.get("seed")),
        ),
    )


def _facts(values: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield size, perplexity and speed, dense and pruned."""
    for label, key, form in (("Parameters", "parameters", short_count), ("Perplexity", "perplexity", number)):
        if sides := values.get(key):
            before, after = sides["dense"], sides["pruned"]
            yield Fact(label, form(after), f"from {form(before)}, {change(before, after)}")
    yield from recovery_facts(values)
    if speed := values.get("tokens per second"):
        for label, key in (("Prefill, tokens/s", "prefill"), ("Decode, tokens/s", "decode")):
            before, after = speed["dense"][key], speed["pruned"][key]
            yield Fact(label, number(after, 3), f"from {number(before, 3)}, {change(before, after)}")


def measured_on(values: Mapping[str, Any]) -> str:
    """Return the sentence of the text that a perplexity was measured on, and of its arithmetic."""
    text = f"Perplexity over {count(values['perplexity tokens'])} tokens"
    if "perplexity dtype" in values:
        text += f", computed in {values['perplexity dtype']}"
    if evaluation := values.get("evaluation"):
        text = f"Text: {evaluation['text']}, windows of {evaluation['tokens a window']} tokens. {text}"
    return f"{text}."


def measured_section(values: Mapping[str, Any], calibration: str | None = None) -> Section:
    """Return dense beside pruned, with the text measured on; ``calibration`` names the calibration text, if read."""
    rows: list[Row] = []
    for name, key, form in (
        ("parameters", "parameters", count),
        ("weights on disk", "weight bytes", size),
        ("perplexity", "perplexity", number),
    ):
        if sides := values.get(key):
            rows.append((name, sides["dense"], sides["pruned"], form))
    paragraphs = []
    if "perplexity" in values:
        text = measured_on(values)
        if loss := values.get("loss difference"):
            text += f" Pruning costs {with_error(loss)} nats a token on the same windows."
        paragraphs.append(text)
    if speed := values.get("tokens per second"):
        dense, pruned = speed["dense"], speed["pruned"]
        for name, key in (("prefill, tokens/s", "prefill"), ("decode, tokens/s", "decode")):
            rows.append((name, dense[key], pruned[key], lambda value: number(value, 3)))
        paragraphs.append(
            f"Speed with a prompt of {dense['prompt_tokens']} and {dense['new_tokens']} new tokens, {dense['dtype']} "
            f"on {dense['device']}: medians of {dense['repeats']} rounds, dense and pruned in turn."
        )
    read = calibration, (values.get("evaluation") or {}).get("text")
    if any(str(text).startswith("builtin") for text in read):
        paragraphs.append(SMOKE_TEXT[:1].upper() + SMOKE_TEXT[1:] + ".")
    return Section("Before and after", tuple(paragraphs), (before_and_after(rows),))


def scores_section(values: Mapping[str, Any]) -> Section:
    """Return the spread of every layer's scores, one figure per kind."""
    rows = values.get("scores") or ()
    figures = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        label = KINDS.get(kind, kind)
        own = [row for row in rows if row["kind"] == kind]
        medians = [row["median"] for row in own if row["median"] is not None]
        figures.append(
            Figure(
                score_spread([row for row in own if None not in row.values()], f"score of {label}"),
                f"{label}: median (dot), quartiles (thick) and extremes (thin) of a layer's scores.",
                f"Median scores of {label} lie between {number(min(medians, default=0), 3)} and "
                f"{number(max(medians, default=0), 3)} over {len(own)} layers.",
            )
        )
    return Section("Scores", figures=tuple(figures))


def _blend(values: Mapping[str, Any]) -> Section:
    """Return the figures of a fused method's blend, by layer."""
    rows = values.get("blends") or ()
    if not rows:
        return Section("Blend")
    figures = []
    for key, label, caption in (
        ("share", "share of the fine score", "The fine score's mean share in the blend of a group."),
        (
            "correlation",
            "rank correlation",
            "How far the coarse and the fine score rank units alike: 1 is the same order.",
        ),
    ):
        series: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            layer, part = part_of(row["group"])
            if row[key] is not None:
                series.setdefault(KINDS.get(part, part), []).append((layer, row[key]))
        figures.append(Figure(lines(series, "layer", label), caption, f"{caption} One line a kind, over the layers."))
    return Section("How the scores were blended", figures=tuple(figures))


def _fit(values: Mapping[str, Any]) -> Section:
    """Return the losses of a fitted method by step."""
    fit = values.get("fit")
    if not fit:
        return Section("Fit")
    checks = [(int(step), loss) for step, loss in fit["loss by step"].items() if loss is not None]
    losses = [(step, loss) for step, loss in enumerate(values.get("fit losses", ())) if loss is not None]
    best = fit["step kept"]
    caption = f"Loss under soft masks at every step, and under hard masks on samples held out; step {best} was kept."
    kept = dict(checks).get(best)
    alt = f"Held-out loss {number(checks[0][1]) if checks else ''} at first, {number(kept)} at the step kept."
    return Section("Fit of the blend", figures=(Figure(loss_curves(losses, checks, best), caption, alt, wide=True),))
