"""Allocator of a search: sparsities and levels of a function in a fraction of a millisecond; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike
from torch import nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.errors import InputError
from pruneengine.search.dsa.codes import level_of_group, levels_of
from pruneengine.sparse.allocations.allocate import allocate_sparsities
from pruneengine.sparse.allocations.block_scores import collect_scores
from pruneengine.sparse.allocations.whole_groups import round_to_groups
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.functions.allocation import allocation_of, canonical_levels
from pruneengine.sparse.functions.distribution import ScoreDistribution
from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.matrices import Matrix, of_layers
from pruneengine.sparse.pattern import Pattern


@dataclass(frozen=True)
class TriedAllocation:
    """Sparsities of a prune, and the mask levels by which trials evaluate them.

    Attributes:
        sparsities: by the linear's module path.
        levels: 0 to 255, one per decoder layer; 0 for a layer whose linears all stay dense. Functions have the same
            levels if their values differ in scale and offset alone, or by thousandths of their range.
        words: description of the allocation.
    """

    sparsities: dict[str, float]
    levels: tuple[int, ...]
    words: str

    def by_layer(self, matrices: Sequence[Matrix]) -> list[float]:
        """Return the sparsity of each decoder layer, over its linears among the matrices; 0 for a layer without any."""
        layers = of_layers(matrices)
        return [
            sum(self.sparsities[m.name] * m.numel for m in layers.get(index, ()))
            / max(1, sum(m.numel for m in layers.get(index, ())))
            for index in range(len(self.levels))
        ]


class Allocator:
    """Allocations of one model at one sparsity.

    Args:
        model: the dense model; read here, and once more for every allocation by name.
        matrices: the linears that are pruned.
        statistics: of the dense model, with "squares". Functions read Wanda's scores under every pruner.
        config: the sparsity and the pattern.
        num_layers: number of decoder layers; a layer without any of the matrices stays dense.
    """

    def __init__(
        self,
        model: nn.Module,
        matrices: Sequence[Matrix],
        statistics: Statistics,
        config: SparseConfig,
        num_layers: int,
    ) -> None:
        self.matrices, self.config = tuple(matrices), config
        self._num_layers = num_layers
        self._pattern = Pattern.parse(config.pattern)
        # A config without a sparsity takes its pattern's.
        assert config.sparsity is not None
        self._sparsity = config.sparsity
        blocks = collect_scores(model, matrices, statistics).of_layers()
        self._sizes = blocks.sizes
        self.distribution = ScoreDistribution(blocks.moments, blocks.histogram)

    def of_function(self, function: Function) -> TriedAllocation:
        """Return the allocation of a function.

        Raises:
            ValueError: values that are not finite, or do not tell layers apart.
        """
        if not self.distribution.is_valid(function):
            raise InputError("its values are not finite, or do not tell the layers apart")
        values = self.distribution.values(function)
        exact = self._spread(values, function.spread, function.sign)
        # The levels are those of the key, so that functions that are equal but for rounding are tried once.
        key = [thousandths / 1000 for thousandths in canonical_levels(values, function.sign)]
        return TriedAllocation(exact, self._levels(self._spread(key, function.spread)), str(function))

    def named(self, model: nn.Module, name: str, statistics: Statistics) -> TriedAllocation:
        """Return a named allocation, with one sparsity per decoder layer."""
        values = self.config.to_dict() | {"allocation": name}
        allocation = allocate_sparsities(model, self.matrices, SparseConfig.from_dict(values), statistics)
        return TriedAllocation(allocation.sparsities, self._levels(allocation.sparsities), allocation.words)

    def _spread(self, values: ArrayLike, spread: float, sign: int = 1) -> dict[str, float]:
        by_layer = allocation_of(values, self._sparsity, spread, sign, weights=self._sizes).tolist()
        layers = of_layers(self.matrices).values()
        sparsities = {m.name: sparsity for layer, sparsity in zip(layers, by_layer, strict=True) for m in layer}
        if self._pattern.m is not None:
            return round_to_groups(self.matrices, sparsities, self._sparsity, self._pattern.m)
        return sparsities

    def _levels(self, sparsities: Mapping[str, float]) -> tuple[int, ...]:
        layers = of_layers(self.matrices)
        by_layer = [sparsities[layer[0].name] for layer in layers.values()]
        if (m := self._pattern.m) is not None:
            levels = tuple(level_of_group(sparsity, m) for sparsity in by_layer)
        else:
            levels = levels_of(by_layer, self._sizes)
        level_of_layer = dict(zip(layers, levels, strict=True))
        return tuple(level_of_layer.get(layer, 0) for layer in range(self._num_layers))
