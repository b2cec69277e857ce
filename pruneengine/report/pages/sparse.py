"""Page of a sparse prune, from the values of its ``report.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pruneengine.report.figures.layers import lines, sparsity_picture
from pruneengine.report.page import Fact, Figure, Page, Section, Table
from pruneengine.report.pages.checkpoint_sections import proof_section
from pruneengine.report.pages.frame import Recipe, framed
from pruneengine.report.pages.parts import times
from pruneengine.report.pages.prune import measured_section
from pruneengine.report.words import NOTHING, change, count, number, percent, short_count


def sparse_page(values: Mapping[str, Any]) -> Page:
    """Return the page. Only the summary's main keys must be there; sections show what else the values hold.

    Args:
        values: :func:`pruneengine.report.values.sparse.sparse_summary`, with what else is known: ``sparse_details``,
            "speed notes", "source", "recipe", "hashes", "proof", "prompt" and "continuation", "seconds", "warnings".
    """
    recipe = Recipe.of(values, "sparse")
    return framed(
        values,
        title=f"{recipe.model(values)}, made sparse by {values['method']}",
        subtitle=f"{percent(values['sparsity reached'], 1)} of the weights of {_linears(values)} are zero, "
        f"{percent(values['sparsity asked'], 1)} asked for",
        facts=_facts(values),
        sections=(
            measured_section(values, recipe.calibration),
            Section("What gets faster, and what does not", tuple(values.get("speed notes", ()))),
            _sparsity(values),
            proof_section(values),
            *recipe.sections(times(values.get("seconds")), values.get("hashes"), recipe.config.get("seed")),
        ),
    )


def _facts(values: Mapping[str, Any]) -> Iterator[Fact]:
    """Yield the number of zeros, and the perplexity."""
    yield Fact(
        "Zero weights", short_count(values["zeros"]), f"of {short_count(values['weights'])} in {_linears(values)}"
    )
    if sides := values.get("perplexity"):
        before, after = sides["dense"], sides["pruned"]
        yield Fact("Perplexity", number(after), f"from {number(before)}, {change(before, after)}")


def _linears(values: Mapping[str, Any]) -> str:
    """Return the number of pruned linears in words."""
    return f"{values['matrices']} linears" if "matrices" in values else "linears"


def _sparsity(values: Mapping[str, Any]) -> Section:
    """Return the section of every layer's and linear's sparsity."""
    rows = values.get("layers") or ()
    text = _counted(values)
    if not rows:
        return Section("Where the zeros are", (text,))
    names = list(dict.fromkeys(name for row in rows for name in row["linears"]))
    series = {name: [row["linears"].get(name) for row in rows] for name in names}
    shares = [row["sparsity"] for row in rows]
    span = f"from {percent(min(shares), 1)} to {percent(max(shares), 1)} over {len(rows)} layers"
    figures = [
        Figure(
            sparsity_picture(series),
            "Weights of every linear, layer by layer: the filled part stays, the pale part is zero.",
            f"The sparsity of a layer goes {span}.",
            wide=True,
        ),
        Figure(
            lines({"sparsity": [(row["layer"], row["sparsity"]) for row in rows]}, "layer", "sparsity"),
            "Sparsity of every layer.",
            f"The sparsity of a layer goes {span}.",
        ),
    ]
    if judged := values.get("allocation values"):
        caption = "What the allocation judged the layers by."
        figures.append(Figure(lines({"value": judged}, "layer", "value"), caption, caption))
    cells = tuple(
        (str(row["layer"]), percent(row["sparsity"]), *(percent(row["linears"].get(name)) for name in names))
        for row in rows
    )
    table = Table(("layer", "all", *(short_name(name) for name in names)), cells, "Every linear", folded=True)
    return Section("Where the zeros are", (text,), (table,), tuple(figures))


def _counted(values: Mapping[str, Any]) -> str:
    """Return planned and counted zeros in words."""
    text = (
        f"Pattern {values.get('pattern', NOTHING)}, allocation {values.get('allocation', NOTHING)}. "
        f"{count(values['zeros'])} of {count(values['weights'])} weights are zero, counted in the saved files"
    )
    if "zeros planned" not in values:
        return text + "."
    odd = values.get("matrices with other than the planned zeros", 0)
    exact = "exactly as planned in every one" if not odd else f"other than planned in {odd}"
    return f"{text}; {count(values['zeros planned'])} were planned ({values['matrices']} matrices, {exact})."


def short_name(name: str) -> str:
    """Return ``q`` for ``self_attn.q_proj``."""
    return name.rpartition(".")[2].removesuffix("_proj")
