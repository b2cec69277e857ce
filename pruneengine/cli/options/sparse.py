"""The options of prune that belong to sparse pruning, and the config that they give."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pruneengine.cli.app import flags, given

if TYPE_CHECKING:
    from pruneengine.sparse.config import SparseConfig

PANEL = "Sparse pruning (single weights become zero)"


_option = partial(typer.Option, rich_help_panel=PANEL)
Sparsity = Annotated[
    float | None, _option(help="Fraction of the weights that become zero, of all linears but those of --ignore.")
]
PatternOption = Annotated[
    str | None, _option("--pattern", help="unstructured, or N:M such as 2:4: N weights kept of every M.")
]
Spread = Annotated[
    float | None, _option(help="How far sparsities may differ: λ of owl and of functions, else a bound.")
]
Outlier = Annotated[float | None, _option(help="M of owl: an outlier is over so many means (5).")]
Compare = Annotated[str | None, _option(help="Weights that compete: row, matrix or layer (as published).")]
Mode = Annotated[str | None, _option(help="sequential, two-pass or one-shot statistics (sequential).")]
Damp = Annotated[float | None, _option(help="SparseGPT's damping (0.01).")]
Block = Annotated[int | None, _option(help="SparseGPT's columns a block (128, or nearest to it a multiple of M).")]
Ignore = Annotated[
    str | None,
    _option(
        metavar="NAMES",
        help="Linears that stay dense: down_proj,re:layers\\.0\\. Commas part them, but for those in {} and [].",
    ),
]


def sparse_config(
    recipe: Path | None, shared: Mapping[str, Any], own: Mapping[str, Any], structured: Mapping[str, Any]
) -> SparseConfig | None:
    """How to prune sparsely, or None where that is not what is asked for; None among the values was not given.

    Args:
        recipe: whose ``sparse`` section asks for it, too.
        shared: options of both kinds of pruning, by name.
        own: of sparse pruning; a sparsity or a pattern asks for it.
        structured: of structured pruning.

    Raises:
        ValueError: options of the other kind, or of neither.
    """
    from pruneengine.common.recipes import read_recipe
    from pruneengine.sparse.config import METHODS, SparseConfig

    named = given(shared | own)
    if not (named.keys() & {"sparsity", "pattern"} or (recipe and _is_sparse(recipe))):
        if alone := given(own):
            raise ValueError(f"{flags(alone)}: options of sparse pruning; give --sparsity S or --pattern N:M with them")
        # "wanda" is a structured metric, too.
        if named.get("method") in set(METHODS) - {"wanda"} and structured["ratio"] is None:
            raise ValueError(f"method {named['method']!r} zeros single weights: give --sparsity S or --pattern N:M")
        return None
    if odd := given(structured):
        raise ValueError(
            f"{flags(odd)}: options of structured pruning, which removes heads, channels and layers; --sparsity, "
            "--pattern or a recipe with sparse: ask for sparse pruning, which zeros single weights. Choose one"
        )
    return SparseConfig.from_dict((read_recipe(recipe, "sparse") if recipe else {}) | named)


def _is_sparse(recipe: Path) -> bool:
    from pruneengine.common.recipes import RECIPES, read_keys

    content = read_keys(recipe)
    return "sparse" in content or bool(not content.keys() & RECIPES.keys() and content.keys() & {"sparsity", "pattern"})
