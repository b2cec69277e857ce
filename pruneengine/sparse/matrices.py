"""The matrices that sparse pruning works on: every linear of every decoder layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from pruneengine.model import Structure, get_linear, layer_of


@dataclass(frozen=True)
class Matrix:
    """One linear's weight ``[rows, columns]``.

    Attributes:
        name: module path of the linear.
        layer: its decoder layer.
        site: the input that it reads (:class:`pruneengine.model.Site`).
    """

    name: str
    layer: int
    site: str
    rows: int
    columns: int

    @property
    def numel(self) -> int:
        return self.rows * self.columns


def find_matrices(model: nn.Module, structure: Structure, ignore: Sequence[str] = ()) -> tuple[Matrix, ...]:
    """The matrices in the order in which the model computes them; embeddings and the head are not among them.

    Args:
        model: may be on the meta device.
        structure: of the model.
        ignore: linears that stay dense: module paths, their endings, or regular expressions after ``re:``.

    Raises:
        ValueError: an ``ignore`` that matches nothing, or all.
    """
    found = []
    for site in structure.sites:
        layer = layer_of(site.name)
        for name in site.consumers:
            rows, columns = get_linear(model, name).weight.shape
            found.append(Matrix(name, layer, site.name, rows, columns))
    left = {matrix.name for matrix in found}
    for wanted in ignore:
        matching = {matrix.name for matrix in found if _matches(wanted, matrix.name)}
        if not matching:
            raise ValueError(f"ignore {wanted!r} matches none of the linears, such as {found[0].name}")
        left -= matching
    if not left:
        raise ValueError(f"ignore {', '.join(ignore)} leaves no linear to prune")
    return tuple(matrix for matrix in found if matrix.name in left)


def of_layers(matrices: Iterable[Matrix]) -> dict[int, tuple[Matrix, ...]]:
    """The matrices of each decoder layer that has any."""
    layers: dict[int, tuple[Matrix, ...]] = {}
    for matrix in matrices:
        layers[matrix.layer] = (*layers.get(matrix.layer, ()), matrix)
    return layers


def of_sites(matrices: Iterable[Matrix]) -> dict[str, tuple[Matrix, ...]]:
    """The matrices that read one input together, by its site."""
    sites: dict[str, tuple[Matrix, ...]] = {}
    for matrix in matrices:
        sites[matrix.site] = (*sites.get(matrix.site, ()), matrix)
    return sites


def check_columns(matrices: Iterable[Matrix], m: int) -> None:
    """Refuse rows that are no whole number of groups of ``m``; ValueError names the layers."""
    uneven = [matrix for matrix in matrices if matrix.columns % m]
    if uneven:
        shown = ", ".join(f"{matrix.name} ({matrix.columns})" for matrix in uneven[:4])
        more = f" and {len(uneven) - 4} more" if len(uneven) > 4 else ""
        raise ValueError(
            f"groups of {m} need input dimensions that {m} divides; nothing was pruned because of {shown}{more}. "
            "Leave them dense with ignore, or choose another pattern"
        )


def _matches(wanted: str, name: str) -> bool:
    if wanted.startswith("re:"):
        try:
            return re.search(wanted.removeprefix("re:"), name) is not None
        except re.error as error:
            raise ValueError(f"ignore {wanted!r}: no regular expression ({error})") from None
    return name == wanted or name.endswith(f".{wanted}")
