"""Command-line options of sparse pruning, and the config that they give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pruneengine.cli.app import flags, given
from pruneengine.cli.options.option import SPARSE, option
from pruneengine.common.errors import InputError

if TYPE_CHECKING:
    from pruneengine.sparse.config import SparseConfig

Sparsity = Annotated[
    float | None,
    option("Fraction of the weights that become zero, of all linears but those of --ignore; asks for sparse pruning."),
]
PatternOption = Annotated[
    str | None,
    option(
        "Pattern of the zeros: unstructured, or N:M such as 2:4 (N weights kept of every M).", "--pattern",
        default="unstructured", panel=SPARSE,
    ),
]  # fmt: skip
Spread = Annotated[
    float | None,
    option(
        "Spread of the layers' sparsities: lambda of owl and of allocation functions; for other allocations the "
        "largest difference of a layer from the mean.",
        default="0.08 for owl, the function's own, else unbounded", panel=SPARSE,
    ),
]  # fmt: skip
Outlier = Annotated[
    float | None,
    option("OWL outlier threshold M, in multiples of the layer's mean score.", default=5, panel=SPARSE),
]
Compare = Annotated[
    str | None,
    option(
        "Weights that compete for the zeros: those of a row, a matrix or a layer.",
        default="row for wanda and matrix for magnitude, as published", panel=SPARSE,
    ),
]  # fmt: skip
Mode = Annotated[
    str | None,
    option(
        "Statistics of a linear: sequential (behind pruned linears), two-pass (behind pruned layers) or one-shot (of "
        "the dense model).", default="sequential", panel=SPARSE,
    ),
]  # fmt: skip
Damp = Annotated[
    float | None,
    option("SparseGPT damping, as a fraction of the mean of the Hessian's diagonal.", default=0.01, panel=SPARSE),
]
Block = Annotated[
    int | None,
    option(
        "SparseGPT block size, in columns.", default="128, or under N:M the nearest multiple of M", panel=SPARSE,
    ),
]  # fmt: skip
Ignore = Annotated[
    str | None,
    option(
        "Linears that stay dense, such as down_proj,re:layers\\.0\\. (commas within {} and [] belong to the pattern).",
        default="none", panel=SPARSE, metavar="NAMES",
    ),
]  # fmt: skip


def sparse_config(
    recipe: Path | None, shared: Mapping[str, Any], own: Mapping[str, Any], structured: Mapping[str, Any]
) -> SparseConfig | None:
    """Return how to prune sparsely; None where structured pruning is asked for.

    None among the values was not given.

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

    named = given({**shared, **own})
    if not (named.keys() & {"sparsity", "pattern"} or (recipe and _is_sparse(recipe))):
        if alone := given(own):
            raise InputError(f"{flags(alone)}: options of sparse pruning; give --sparsity S or --pattern N:M with them")
        # "wanda" is a structured metric, too.
        if named.get("method") in set(METHODS) - {"wanda"} and structured["ratio"] is None:
            raise InputError(f"method {named['method']!r} zeros single weights: give --sparsity S or --pattern N:M")
        return None
    if odd := given(structured):
        asked = flags(given({name: own[name] for name in ("sparsity", "pattern")})) or f"--recipe {recipe}"
        raise InputError(
            f"{flags(odd)} with {asked}: structured pruning removes heads, channels and layers, sparse pruning "
            "(--sparsity, --pattern) zeros single weights; ask for one of them"
        )
    return SparseConfig.from_dict((read_recipe(recipe, "sparse") if recipe else {}) | named)


def _is_sparse(recipe: Path) -> bool:
    """Return True if a recipe asks for sparse pruning: by its section, or by its keys where it has none."""
    from pruneengine.common.recipes import RECIPES, read_keys

    content = read_keys(recipe)
    return "sparse" in content or bool(not content.keys() & RECIPES.keys() and content.keys() & {"sparsity", "pattern"})
