"""From allocation functions to sparsities and levels: a fraction of a millisecond, no weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pruneengine.calibration.statistics import Statistics
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
    """Sparsities of a prune, and the levels that they are tried by.

    Attributes:
        sparsities: by the linear's module path.
        levels: 0 to 255, one a decoder layer; 0 of a layer whose linears all stay dense. Functions whose values differ
            in scale and offset alone, or by thousandths of their range, have the same.
        words: how it was decided.
    """

    sparsities: dict[str, float]
    levels: tuple[int, ...]
    words: str

    def by_layer(self, matrices: Sequence[Matrix]) -> list[float]:
        """The sparsity of each decoder layer, over its linears among the matrices; 0 where there are none."""
        layers = of_layers(matrices)
        return [
            sum(self.sparsities[m.name] * m.numel for m in layers.get(index, ()))
            / max(1, sum(m.numel for m in layers.get(index, ())))
            for index in range(len(self.levels))
        ]


class Allocator:
    """Allocations of one model at one sparsity.

    Args:
        model: the dense model; read here, and not again but for allocations with a name.
        matrices: what is pruned.
        statistics: of the dense model, with "squares". Functions read Wanda's scores under every pruner.
        config: the sparsity and the pattern.
        num_layers: of the model; a layer without any of the matrices stays dense.
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
        blocks = collect_scores(model, matrices, statistics).of_layers()
        self._sizes = blocks.sizes
        self.distribution = ScoreDistribution(blocks.moments, blocks.histogram)

    def of_function(self, function: Function) -> TriedAllocation:
        """What a function gives.

        Raises:
            ValueError: values that are not finite, or do not tell layers apart.
        """
        if not self.distribution.is_valid(function):
            raise ValueError("its values are not finite, or do not tell the layers apart")
        values = self.distribution.values(function)
        exact = self._spread(values, function.spread, function.sign)
        # The levels are those of the key, so that what is equal but for rounding is tried once.
        key = [thousandths / 1000 for thousandths in canonical_levels(values, function.sign)]
        return TriedAllocation(exact, self._levels(self._spread(key, function.spread)), str(function))

    def named(self, model: nn.Module, name: str, statistics: Statistics) -> TriedAllocation:
        """What an allocation by name gives, one sparsity a decoder layer."""
        values = self.config.to_dict() | {"allocation": name}
        found = allocate_sparsities(model, self.matrices, SparseConfig.from_dict(values), statistics)
        return TriedAllocation(found.sparsities, self._levels(found.sparsities), found.words)

    def _spread(self, values: Sequence[float], spread: float, sign: int = 1) -> dict[str, float]:
        found = allocation_of(values, self.config.sparsity, spread, sign, weights=self._sizes)
        layers = of_layers(self.matrices).values()
        sparsities = {m.name: sparsity for layer, sparsity in zip(layers, found.tolist(), strict=True) for m in layer}
        if self._pattern.grouped:
            return round_to_groups(self.matrices, sparsities, self.config.sparsity, self._pattern.m)
        return sparsities

    def _levels(self, sparsities: Mapping[str, float]) -> tuple[int, ...]:
        layers = of_layers(self.matrices)
        by_layer = [sparsities[layer[0].name] for layer in layers.values()]
        if self._pattern.grouped:
            levels = tuple(level_of_group(sparsity, self._pattern.m) for sparsity in by_layer)
        else:
            levels = levels_of(by_layer, self._sizes)
        found = dict(zip(layers, levels, strict=True))
        return tuple(found.get(layer, 0) for layer in range(self._num_layers))
