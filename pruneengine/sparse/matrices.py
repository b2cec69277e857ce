"""Matrices of sparse pruning: the weight of every linear in every decoder layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from pruneengine.common.errors import InputError
from pruneengine.model import Structure, get_linear, layer_of


@dataclass(frozen=True)
class Matrix:
    """One linear's weight ``[rows, columns]``.

    Attributes:
        name: module path of the linear.
        layer: index of its decoder layer.
        site: name of the input that it reads (:class:`pruneengine.model.Site`).
    """

    name: str
    layer: int
    site: str
    rows: int
    columns: int

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


def find_matrices(model: nn.Module, structure: Structure, ignore: Sequence[str] = ()) -> tuple[Matrix, ...]:
    """Return the matrices in the order in which the model computes them, without embeddings and the head.

    Args:
        model: may be on the meta device.
        structure: of the model.
        ignore: linears that stay dense: module paths, their endings, or regular expressions after ``re:``.

    Raises:
        ValueError: an entry of ``ignore`` matches nothing, or together they match everything.
    """
    matrices = []
    for site in structure.sites:
        layer = layer_of(site.name)
        for name in site.consumers:
            rows, columns = get_linear(model, name).weight.shape
            matrices.append(Matrix(name, layer, site.name, rows, columns))
    remaining = {matrix.name for matrix in matrices}
    for pattern in ignore:
        matching = {matrix.name for matrix in matrices if _matches(pattern, matrix.name)}
        if not matching:
            raise InputError(f"ignore {pattern!r} matches none of the linears, such as {matrices[0].name}")
        remaining -= matching
    if not remaining:
        raise InputError(f"ignore {', '.join(ignore)} leaves no linear to prune")
    return tuple(matrix for matrix in matrices if matrix.name in remaining)


def of_layers(matrices: Iterable[Matrix]) -> dict[int, tuple[Matrix, ...]]:
    """Return the matrices of each decoder layer that has any, by its index."""
    layers: dict[int, tuple[Matrix, ...]] = {}
    for matrix in matrices:
        layers[matrix.layer] = (*layers.get(matrix.layer, ()), matrix)
    return layers


def of_sites(matrices: Iterable[Matrix]) -> dict[str, tuple[Matrix, ...]]:
    """Return the matrices that read each input, by its site."""
    sites: dict[str, tuple[Matrix, ...]] = {}
    for matrix in matrices:
        sites[matrix.site] = (*sites.get(matrix.site, ()), matrix)
    return sites


def check_columns(matrices: Iterable[Matrix], m: int) -> None:
    """Raise ValueError, naming the linears, if rows are not whole numbers of groups of ``m``."""
    uneven = [matrix for matrix in matrices if matrix.columns % m]
    if uneven:
        shown = ", ".join(f"{matrix.name} ({matrix.columns})" for matrix in uneven[:4])
        more = f" and {len(uneven) - 4} more" if len(uneven) > 4 else ""
        raise InputError(
            f"groups of {m} need input dimensions that {m} divides; nothing was pruned because of {shown}{more}. "
            "Leave them dense with ignore, or choose another pattern"
        )


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.search(pattern.removeprefix("re:"), name) is not None
        except re.error as error:
            raise InputError(f"ignore {pattern!r}: no regular expression ({error})") from None
    return name == pattern or name.endswith(f".{pattern}")
