"""Sparsities that groups of M weights can have: a whole number goes of each, the same in all of a decoder layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pruneengine.common.budgets import largest_remainders
from pruneengine.sparse.matrices import Matrix, of_layers


def round_to_groups(
    matrices: Sequence[Matrix], sparsities: Mapping[str, float], target: float, m: int
) -> dict[str, float]:
    """The nearest whole numbers of weights removed per group of ``m`` in each decoder layer, by largest remainder.

    The idea of OWL's N:M variant (Yin et al. 2024), with a mean that is met where the layers are of equal size, and
    otherwise to half a weight of a group of the largest layer.

    Args:
        matrices: what is pruned.
        sparsities: of each matrix, in ``[0, (m - 1) / m]``, by name.
        target: the mean over weights.
        m: weights in a group.

    Returns:
        ``{name: removed / m}``, at least one weight of each group kept.
    """
    layers = of_layers(matrices)
    sizes = {layer: sum(matrix.numel for matrix in members) for layer, members in layers.items()}
    wished = {
        layer: m * math.fsum(sparsities[matrix.name] * matrix.numel for matrix in members) / sizes[layer]
        for layer, members in layers.items()
    }
    removed = largest_remainders(wished, sizes, target * m * sum(sizes.values()), dict.fromkeys(wished, m - 1))
    return {matrix.name: removed[matrix.layer] / m for matrix in matrices}
