"""From what enters a linear to the linear pruned: Wanda and SparseGPT behind one face."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruneengine.calibration.idle_experts import idle_words
from pruneengine.model import get_linear
from pruneengine.model.edit import set_weight
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.matrices import Matrix, of_sites
from pruneengine.sparse.pattern import Pattern
from pruneengine.sparse.plan import SparsePlan
from pruneengine.sparse.pruners.input_sums import Hessian, SquareSums, idle
from pruneengine.sparse.pruners.smallest import zero_smallest
from pruneengine.sparse.pruners.sparsegpt import Share, inverse_factor, prune_columns

IDLE = "its weights go by magnitude alone"


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
        warn_of_idle(self.warnings, [site for site, norm in norms.items() if idle(site, norm)])
        zero_smallest(self._model, self._plan, matrices, self._compare, norms)


class SparseGPT:
    """Frantar & Alistarh 2023: the weights that stay make up for those that go."""

    def __init__(self, model: nn.Module, plan: SparsePlan, config: SparseConfig) -> None:
        self._model, self._plan, self._config = model, plan, config
        self._m = Pattern.parse(plan.pattern).m
        self.warnings: list[str] = []

    def sums(self) -> Hessian:
        return Hessian()

    def prune(self, matrices: Sequence[Matrix], sums: Mapping[str, Hessian]) -> None:
        for site, together in of_sites(matrices).items():
            self._prune(together, sums[site])

    def _prune(self, matrices: Sequence[Matrix], hessian: Hessian) -> None:
        names = ", ".join(matrix.name for matrix in matrices)
        sums = hessian.matrix(names)
        dead = sums.diagonal() == 0
        if idle(matrices[0].site, sums.diagonal()):
            # Of all inputs alike: the smallest weights go, and no other makes up for them.
            dead = torch.zeros_like(dead)
            sums.diagonal().fill_(1)
            warn_of_idle(self.warnings, [matrices[0].site])
        sums.diagonal().masked_fill_(dead, 1)
        factor = self._factor(sums, names)
        linears = [get_linear(self._model, matrix.name) for matrix in matrices]
        columns = torch.cat([linear.weight.detach().T.float() for linear in linears], 1)
        ends = [*accumulate(matrix.rows for matrix in matrices)]
        shares = [
            Share(slice(end - matrix.rows, end), self._plan.removed[matrix.name], self._kept(matrix))
            for matrix, end in zip(matrices, ends, strict=True)
        ]
        prune_columns(columns, factor, dead, shares, self._config.block, self._m)
        for linear, share in zip(linears, shares, strict=True):
            set_weight(linear, columns[:, share.rows].T)

    def _factor(self, hessian: Tensor, names: str) -> Tensor:
        try:
            factor, damp = inverse_factor(hessian, self._config.damp)
        except ValueError as error:
            raise ValueError(f"{names}: {error}") from None
        if damp != self._config.damp:
            self.warnings.append(
                f"{names}: no Cholesky factor at damp {self._config.damp:g}; {damp:g} was taken in its place"
            )
        return factor

    def _kept(self, matrix: Matrix) -> int | None:
        return None if self._m is None else self._plan.kept_of_group(matrix.name)


def warn_of_idle(warnings: list[str], sites: Iterable[str]) -> None:
    """Add one warning for every expert of these sites."""
    for site in sites:
        (words,) = idle_words([site.rpartition(".")[0]], IDLE)
        if words not in warnings:
            warnings.append(words)


def make_pruner(model: nn.Module, plan: SparsePlan, config: SparseConfig) -> Pruner:
    """The config's method, for this model and plan."""
    return {"wanda": Wanda, "sparsegpt": SparseGPT}[config.method](model, plan, config)
