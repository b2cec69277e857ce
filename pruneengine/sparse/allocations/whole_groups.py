"""Allocation under N:M: whole numbers of weights per group, the same for all matrices of a decoder layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pruneengine.common.budgets import largest_remainders
from pruneengine.sparse.matrices import Matrix, of_layers


def round_to_groups(
    matrices: Sequence[Matrix], sparsities: Mapping[str, float], target: float, m: int
) -> dict[str, float]:
    """Round sparsities to whole numbers of weights per group of ``m`` in each decoder layer, by largest remainder.

    The idea is that of OWL's N:M variant (Yin et al. 2024). Here the mean is met where all layers have the same size,
    and otherwise to half a weight per group of the largest layer.

    Args:
        matrices: to prune.
        sparsities: by matrix, in ``[0, (m - 1) / m]``.
        target: mean over weights.
        m: weights in a group.

    Returns:
        ``{name: removed / m}``; at least one weight of each group is kept.
    """
    layers = of_layers(matrices)
    sizes = {layer: sum(matrix.numel for matrix in members) for layer, members in layers.items()}
    wished = {
        layer: m * math.fsum(sparsities[matrix.name] * matrix.numel for matrix in members) / sizes[layer]
        for layer, members in layers.items()
    }
    removed = largest_remainders(wished, sizes, target * m * sum(sizes.values()), dict.fromkeys(wished, m - 1))
    return {matrix.name: removed[matrix.layer] / m for matrix in matrices}
