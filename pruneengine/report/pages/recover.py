"""Page of a recovery, from the values of its ``report.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pruneengine.report.figures.layers import loss_curves
from pruneengine.report.page import Fact, Figure, Page, Section, Table
from pruneengine.report.pages.checkpoint_sections import proof_section
from pruneengine.report.pages.frame import Recipe, framed
from pruneengine.report.pages.parts import pairs, times
from pruneengine.report.pages.plan_section import plan_section
from pruneengine.report.pages.prune import measured_on, measured_section, scores_section
from pruneengine.report.words import number, plain, short_count, signed, with_error

# Name of the validation loss among the job's numbers; where it is there, the curve's end would repeat it.
VALIDATION = "validation loss, nats"


def recover_page(values: Mapping[str, Any]) -> Page:
    """Return the page. "losses" and "validation" must be there; sections show what else the values hold.

    Args:
        values: "losses" and "validation" (``[[step, mean nll], ...]``), "best_step", "before" and "after" (name ->
            number, or mappings of them), and under "recovery" "recipe", "seconds", "source", "versions", "seed",
            "hashes", "warnings", "proof", "previous" (the same of earlier recoveries), "evaluation", "perplexity
            tokens", "perplexity dtype" and "loss difference"; all else is what the report of the prune before it, or of
            the search, holds, by the same names too.
            Without "recovery" they are the recovery's.
    """
    own = values.get("recovery") or values
    losses = [pair for pair in values["losses"] if pair[1] is not None]
    validation = [pair for pair in values["validation"] if pair[1] is not None]
    before, after = dict(_numbers(values.get("before") or {})), dict(_numbers(values.get("after") or {}))
    dense = {} if own is values else _dense(values, own)
    recipe = Recipe.of(own, "config")
    steps = int(losses[-1][0]) if losses else 0
    return framed(
        own,
        title=f"Recovery of {recipe.model(own)}",
        subtitle=f"{steps:,} steps of training" + _kept(values.get("best_step")),
        facts=(*_size(values), *_facts(dense, before, after, validation, values.get("best_step"))),
        sections=(
            Section("Before and after", _measured(own), (_beside(dense, before, after),)),
            _curves(losses, validation, values.get("best_step")),
            *((plan_section(values),) if values.get("plan") else ()),
            scores_section(values),
            proof_section({"proof": own.get("proof")}),
            *recipe.sections(times(own.get("seconds")), own.get("hashes"), own.get("seed")),
            *(_earlier(place, recovery) for place, recovery in enumerate(own.get("previous") or (), 1)),
            *(() if own is values else (_prune(values),)),
        ),
    )


def _measured(own: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paragraph of the text measured on, and of the loss's change; none without a perplexity."""
    if "perplexity tokens" not in own:
        return ()
    text = measured_on(own)
    if loss := own.get("loss difference"):
        text += f" Recovery changes the loss by {with_error(loss)} nats a token."
    return (text,)


def _earlier(place: int, recovery: Mapping[str, Any]) -> Section:
    """Return the section of an earlier recovery of the same checkpoint."""
    text = f"{int(recovery.get('steps') or 0):,} steps of training" + _kept(recovery.get("best step")) + "."
    if sides := recovery.get("perplexity"):
        text += f" Perplexity {number(sides['before'])} before, {number(sides['after'])} after."
    recipe = pairs(recovery.get("recipe") or {}, "Recipe")
    return Section(f"Recovery {place} before it", (text, *recovery.get("warnings", ())), (recipe,))


def _prune(values: Mapping[str, Any]) -> Section:
    """Return the section of the report that the prune, or the search, wrote of itself."""
    measured = measured_section(values)
    recipe = replace(pairs(values.get("recipe") or {}, "Its recipe"), folded=True)
    spent = (replace(table, caption="Its time", folded=True) for table in times(values.get("seconds")).tables)
    tables = *measured.tables, recipe, *spent
    return Section("The prune before it", (*values.get("warnings", ()), *measured.paragraphs), tables)


def _dense(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, float]:
    """Return the dense model's perplexity if it was measured on the recovery's text in the recovery's arithmetic."""

    def measured(by: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the hash of the evaluation text and the dtype of a report."""
        searched = ((by.get("texts") or {}).get("report") or {}).get("hash")
        return (by.get("hashes") or {}).get("evaluation text", searched), by.get("perplexity dtype")

    known = values.get("perplexity") and None not in measured(own) and measured(values) == measured(own)
    return {"perplexity": values["perplexity"]["dense"]} if known else {}


def _kept(step: int | None) -> str:
    """Return the words for the step that was kept; none without a step."""
    return "" if step is None else f"; step {step:,} was kept"


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers among values by name, those of mappings within as well."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _beside(dense: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Return the table of all numbers before and after, beside the dense model's where they are known."""
    sides = {"dense": dense, "before": before, "after": after} if dense else {"before": before, "after": after}
    rows = tuple(
        (name, *(number(side.get(name)) for side in sides.values()), _difference(before.get(name), after.get(name)))
        for name in dict.fromkeys((*before, *after))
    )
    return Table(("", *sides, "difference"), rows)


def _difference(before: float | None, after: float | None) -> str:
    """Return the signed difference. It is not relative: a percentage of an accuracy would be taken for points."""
    return signed(None if before is None or after is None else after - before)


def _size(values: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield the number of parameters, where it is known."""
    if sides := values.get("parameters"):
        yield Fact("Parameters", short_count(sides["pruned"]), f"dense {short_count(sides['dense'])}")


def _facts(
    dense: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
    validation: list[Any],
    best_step: int | None,
) -> Iterator[Fact]:
    """Yield the first three numbers after the recovery, and the held-out loss."""
    for name in [name for name in after if name in before][:3]:
        note = f"from {number(before[name])}, {_difference(before[name], after[name])}"
        note += f"; dense {number(dense[name])}" if name in dense else ""
        yield Fact(name[:1].upper() + name[1:], number(after[name]), note)
    if validation and VALIDATION not in after:
        kept = dict(map(tuple, validation)).get(best_step, validation[-1][1])
        yield Fact("Held-out loss", number(kept), f"from {number(validation[0][1])} at step {plain(validation[0][0])}")


def _curves(losses: list[Any], validation: list[Any], best_step: int | None) -> Section:
    """Return the section of the losses by step."""
    caption = "Mean loss of the training batches and of the text held out, by step" + _kept(best_step) + "."
    ends = [
        f"{name} from {number(c[0][1])} to {number(c[-1][1])}"
        for name, c in (("training", losses), ("held out", validation))
        if c
    ]
    alt = "Losses: " + ("; ".join(ends) or "none")
    return Section("Loss", figures=(Figure(loss_curves(losses, validation, best_step), caption, alt, wide=True),))
