"""From what enters a linear to the linear pruned: Wanda and SparseGPT behind one face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.inputs import SquareSums
from pruneengine.sparse.masks import zero_smallest
from pruneengine.sparse.matrices import Matrix
from pruneengine.sparse.plan import SparsePlan


class Pruner(Protocol):
    """A method that needs the linears' inputs.

    Attributes:
        warnings: what went otherwise than asked, so far.
    """

    warnings: list[str]

    def sums(self) -> Any:
        """An empty sum, which takes in what enters a site by ``add(x)``, ``x`` being ``[b, T, C]``."""

    def prune(self, matrices: Sequence[Matrix], sums: Mapping[str, Any]) -> None:
        """Prune matrices of one layer in place, from the sums of the sites that they read."""


class Wanda:
    """Sun et al. 2024: the smallest ``|W| * norm`` go, and the others stay as they are."""

    def __init__(self, model: nn.Module, plan: SparsePlan, config: SparseConfig) -> None:
        self._model, self._plan, self._compare = model, plan, config.compared
        self.warnings: list[str] = []

    def sums(self) -> SquareSums:
        return SquareSums()

    def prune(self, matrices: Sequence[Matrix], sums: Mapping[str, SquareSums]) -> None:
        norms = {matrix.site: sums[matrix.site].norm(matrix.name) for matrix in matrices}
        zero_smallest(self._model, self._plan, matrices, self._compare, norms)


def make_pruner(model: nn.Module, plan: SparsePlan, config: SparseConfig) -> Pruner:
    """The config's method, for this model and plan."""
    return Wanda(model, plan, config)
