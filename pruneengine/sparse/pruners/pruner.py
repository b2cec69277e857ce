"""Pruning methods that read the inputs of linears: Wanda and SparseGPT behind one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruneengine.calibration.idle_experts import idle_words
from pruneengine.common.errors import InputError
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
    """A method that needs the inputs of the linears.

    Attributes:
        warnings: everything that went otherwise than asked, so far.
    """

    warnings: list[str]

    def sums(self) -> Any:
        """Return an empty sum. Its ``add(x)`` takes in inputs of a site, ``x`` being ``[b, T, C]``."""

    def prune(self, matrices: Sequence[Matrix], sums: Mapping[str, Any]) -> None:
        """Prune matrices of one layer in place, from the sums of the sites that they read."""


def make_pruner(model: nn.Module, plan: SparsePlan, config: SparseConfig) -> Pruner:
    """Return the pruner of the config's method for this model and plan."""
    methods: dict[str, type[Wanda] | type[SparseGPT]] = {"wanda": Wanda, "sparsegpt": SparseGPT}
    return methods[config.method](model, plan, config)


class Wanda:
    """Wanda (Sun et al. 2024): the smallest ``|W| * norm`` become zero, the other weights stay as they are."""

    def __init__(self, model: nn.Module, plan: SparsePlan, config: SparseConfig) -> None:
        self._model, self._plan, self._compare = model, plan, config.compared
        self.warnings: list[str] = []

    def sums(self) -> SquareSums:
        """Return an empty sum of squares."""
        return SquareSums()

    def prune(self, matrices: Sequence[Matrix], sums: Mapping[str, SquareSums]) -> None:
        """Zero the weights with the smallest scores, as many as the plan says."""
        norms = {matrix.site: sums[matrix.site].norm(matrix.name) for matrix in matrices}
        _warn_of_idle(self.warnings, [site for site, norm in norms.items() if idle(site, norm)])
        zero_smallest(self._model, self._plan, matrices, self._compare, norms)


class SparseGPT:
    """SparseGPT (Frantar & Alistarh 2023): the remaining weights make up for those that become zero."""

    def __init__(self, model: nn.Module, plan: SparsePlan, config: SparseConfig) -> None:
        assert config.block is not None  # SparseConfig fills it in
        self._model, self._plan, self._damp, self._block = model, plan, config.damp, config.block
        self._m = Pattern.parse(plan.pattern).m
        self.warnings: list[str] = []

    def sums(self) -> Hessian:
        """Return an empty Hessian."""
        return Hessian()

    def prune(self, matrices: Sequence[Matrix], sums: Mapping[str, Hessian]) -> None:
        """Prune the matrices of each site together, since they share its Hessian."""
        for site, together in of_sites(matrices).items():
            self._prune(together, sums[site])

    def _prune(self, matrices: Sequence[Matrix], sums: Hessian) -> None:
        names = ", ".join(matrix.name for matrix in matrices)
        hessian = sums.matrix(names)
        dead = hessian.diagonal() == 0
        if idle(matrices[0].site, hessian.diagonal()):
            # All inputs are alike then: the smallest weights go, and no other makes up for them.
            dead = torch.zeros_like(dead)
            hessian.diagonal().fill_(1)
            _warn_of_idle(self.warnings, [matrices[0].site])
        hessian.diagonal().masked_fill_(dead, 1)
        factor = self._factor(hessian, names)
        linears = [get_linear(self._model, matrix.name) for matrix in matrices]
        columns = torch.cat([linear.weight.detach().T.float() for linear in linears], 1)
        ends = [*accumulate(matrix.rows for matrix in matrices)]
        shares = [
            Share(slice(end - matrix.rows, end), self._plan.removed[matrix.name], self._kept(matrix))
            for matrix, end in zip(matrices, ends, strict=True)
        ]
        prune_columns(columns, factor, dead, shares, self._block, self._m)
        for linear, share in zip(linears, shares, strict=True):
            set_weight(linear, columns[:, share.rows].T)

    def _factor(self, hessian: Tensor, names: str) -> Tensor:
        try:
            factor, damp = inverse_factor(hessian, self._damp)
        except ValueError as error:
            raise InputError(f"{names}: {error}") from None
        if damp != self._damp:
            self.warnings.append(f"{names}: no Cholesky factor at damp {self._damp:g}; {damp:g} was taken in its place")
        return factor

    def _kept(self, matrix: Matrix) -> int | None:
        return None if self._m is None else self._plan.kept_of_group(matrix.name)


def _warn_of_idle(warnings: list[str], sites: Iterable[str]) -> None:
    """Add one warning for every expert of the given sites."""
    for site in sites:
        (words,) = idle_words([site.rpartition(".")[0]], IDLE)
        if words not in warnings:
            warnings.append(words)
