"""Global allocation: the fraction of each matrix below one threshold over all scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from pruneengine import ops
from pruneengine.calibration.statistics import Statistics
from pruneengine.model import get_linear
from pruneengine.sparse.allocations.block_scores import wanda_norm
from pruneengine.sparse.matrices import Matrix


def global_shares(
    model: nn.Module, matrices: Sequence[Matrix], sparsity: float, statistics: Statistics | None
) -> dict[str, float]:
    """Return the fraction of each matrix among the smallest ``sparsity`` of all scores.

    Scores equal to the threshold (a bfloat16 model has many) are removed in the same proportion from every matrix.

    Args:
        model: dense; all weights of one dtype, on one device.
        matrices: to prune.
        sparsity: over all matrices, in [0, 1).
        statistics: with "squares" for Wanda's scores; None for ``|W|``.

    Returns:
        ``{name: fraction}``; the mean over weights is ``sparsity``.
    """
    weights = [get_linear(model, matrix.name).weight.detach() for matrix in matrices]
    norms = [
        # The selection takes magnitudes only together with a norm.
        weight.new_ones(weight.shape[1], dtype=torch.float32)
        if statistics is None
        else wanda_norm(statistics, matrix.site).to(weight.device)
        for matrix, weight in zip(matrices, weights, strict=True)
    ]
    wanted = sparsity * sum(matrix.numel for matrix in matrices)
    if not wanted:
        return {matrix.name: 0.0 for matrix in matrices}
    threshold = ops.kth_value_global(weights, math.ceil(wanted), norms)
    bounds = torch.cat([threshold.nextafter(threshold.new_tensor(-math.inf)), threshold])
    counts = [
        ops.block_moments(weight, norm, thresholds=bounds)[1].tolist()
        for weight, norm in zip(weights, norms, strict=True)
    ]
    below = [matrix.numel - equal_or_above for matrix, (equal_or_above, _) in zip(matrices, counts, strict=True)]
    equal = [equal_or_above - above for equal_or_above, above in counts]
    part = (wanted - sum(below)) / sum(equal)
    rows = zip(matrices, below, equal, strict=True)
    return {matrix.name: (less + part * same) / matrix.numel for matrix, less, same in rows}
