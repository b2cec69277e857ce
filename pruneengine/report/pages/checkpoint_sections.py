"""Sections of a checkpoint on the pages of a prune and a search: compensation, recovery, reload proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pruneengine.model import part_of
from pruneengine.report.figures.layers import lines, loss_curves
from pruneengine.report.page import Fact, Figure, Section, Table
from pruneengine.report.pages.plan_section import KINDS
from pruneengine.report.words import NOTHING, count, number, percent

_DONE = {"bias": "got a bias", "least-squares": "were refitted"}


def compensation_section(values: Mapping[str, Any]) -> Section:
    """Return the section of what makes up for removed units, and its gain on samples held out of the fit."""
    compensation = values.get("compensation") or {}
    rows = compensation.get("held-out error") or ()
    if not rows:
        return Section("Compensation")
    biases = compensation["how"] == "bias"
    changed = [row for row in rows if biases or row["ridge"] is not None]
    before, after = (_mean(rows, side) for side in ("before", "after"))
    text = (
        f"By {compensation['how']}, {compensation['mode']}: {len(changed)} of {len(rows)} groups "
        f"{_DONE.get(compensation['how'], 'changed')}"
        f"; the squared error of their outputs on held-out samples goes from {percent(before, 1)} to "
        f"{percent(after, 1)} of the outputs' squares on average."
    )
    if not biases:
        text += " Each group's ridge, or no change at all, is the one with the least error there."
    cells = tuple(
        (row["group"], NOTHING if row["ridge"] is None else f"{row['ridge']:g}", percent(row["before"]),
         percent(row["after"]))
        for row in rows
    )  # fmt: skip
    table = Table(("group", "ridge", "error before", "error after"), cells, "Every group", folded=True)
    figures = tuple(_errors(rows, kind) for kind in dict.fromkeys(_kind(row) for row in rows))
    return Section("Compensation", (text,), (table,), figures)


def _kind(row: Mapping[str, Any]) -> str:
    """Return the kind of a row's group."""
    return part_of(row["group"])[1]


def _mean(rows: Any, side: str) -> float | None:
    """Return the mean error of a side over the rows that have one; None without any."""
    known = [row[side] for row in rows if row[side] is not None]
    return sum(known) / len(known) if known else None


def _errors(rows: Any, kind: str) -> Figure:
    """Draw the errors of a kind by layer, before and after."""
    label = KINDS.get(kind, kind)
    own = [row for row in rows if _kind(row) == kind]
    series = {
        side: [(part_of(row["group"])[0], row[side]) for row in own if row[side] is not None]
        for side in ("before", "after")
    }
    caption = f"{label}: relative squared error of a layer's output, before and after."
    ends = f"{percent(_mean(own, 'before'), 1)} before and {percent(_mean(own, 'after'), 1)} after"
    return Figure(lines(series, "layer", f"error of {label}"), caption, f"{caption} On average {ends}.")


def recovery_facts(values: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield the perplexity after a recovery, where one was measured."""
    if sides := (values.get("recovery") or {}).get("perplexity"):
        yield Fact("Perplexity, recovered", number(sides["after"]), f"from {number(sides['before'])} as pruned")


def recovery_section(values: Mapping[str, Any]) -> Section:
    """Return the section of the training and its losses."""
    recovery = values.get("recovery")
    if not recovery:
        return Section("Recovery")
    best = recovery["best step"]
    text = (
        f"{count(recovery['steps'])} steps of training on {count(recovery['rows'])} rows; step {count(best)} was kept."
    )
    if sides := recovery.get("perplexity"):
        text += f" Perplexity {number(sides['before'])} before, {number(sides['after'])} after."
    text += " Everything else on this page but the reload proof was measured before it."
    losses, checks = (
        [pair for pair in recovery[key] if pair[1] is not None] for key in ("loss by step", "validation loss by step")
    )
    caption = "Mean loss of the training batches and of the rows held out, by step."
    picture = loss_curves(losses, checks, best)
    return Section("Recovery", (text,), figures=(Figure(picture, caption, caption, wide=True),))


def proof_section(values: Mapping[str, Any]) -> Section:
    """Return the section that compares the reopened checkpoint with the model in memory, with its continuation."""
    paragraphs = []
    if proof := values.get("proof"):
        difference, agreement = proof["max_difference"], percent(proof["argmax_agreement"], 1)
        logits = f"within {difference:.1e} of" if difference else "equal to the bit to"
        paragraphs.append(
            f"Reopened in a fresh process by {proof['loader']}: logits {logits} those of the model in memory "
            f"(tolerance {proof['tolerance']:.1e}), next tokens equal at {agreement} of positions."
        )
    if values.get("continuation"):
        paragraphs.append(f"There it continues “{values.get('prompt', '')}”: {values['continuation']}")
    return Section("Reload proof", tuple(paragraphs))
