"""Global allocation: the fraction of each matrix below one threshold over all scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.calibration.threshold import removed_by_threshold
from pruneengine.model import get_linear
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
        else statistics.input_norm(matrix.site).to(weight.device)
        for matrix, weight in zip(matrices, weights, strict=True)
    ]
    number = sparsity * sum(matrix.numel for matrix in matrices)
    if not number:
        return {matrix.name: 0.0 for matrix in matrices}
    removed = removed_by_threshold(weights, norms, number, ties="shared")
    return {matrix.name: count / matrix.numel for matrix, count in zip(matrices, removed, strict=True)}
