"""Masks of every sparsity, decided once from statistics of the dense model: one byte a weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.progress import track
from pruneengine.sparse.matrices import Matrix
from pruneengine.sparse.pattern import Pattern
from pruneengine.statistics import Statistics
from pruneengine.structure import get_linear

LEVELS = 256


def quantile_masks(
    model: nn.Module,
    matrices: Sequence[Matrix],
    statistics: Statistics | None,
    method: str,
    pattern: Pattern | None = None,
) -> dict[str, Tensor]:
    """Codes of the weights, for :func:`pruneengine.apply.masked_weights`: uint8 ``[out, in]`` by module path.

    Args:
        model: the dense model.
        matrices: what a pruner would prune.
        statistics: of the dense model, with "squares"; not read for magnitude.
        method: "magnitude" (weights of a matrix compete), "wanda" (those of a row, by ``|W| * norm``, Sun et al. 2024,
            eq. 1) or "sparsegpt", for which Wanda's masks stand in.
        pattern: under N:M those of a group compete, and the mask that keeps n of m has the level ``256 (m - n) / m``.

    Raises:
        ValueError: statistics without "squares" where they are read.
    """
    pattern = pattern or Pattern()
    codes = {}
    for matrix in track(matrices, "masks"):
        weight = get_linear(model, matrix.name).weight.detach()
        norm = None
        if method != "magnitude":
            # By the sum over samples, as Wanda has it; a row's order does not depend on its scale.
            norm = statistics.mean("squares", matrix.site).sqrt().to(weight.device)
        if pattern.grouped or method == "magnitude":
            scores = weight.abs() if norm is None else weight.float().abs() * norm
            columns = pattern.m if pattern.grouped else weight.numel()
            codes[matrix.name] = ops.quantile_codes(scores.reshape(-1, columns)).view(weight.shape)
        else:
            codes[matrix.name] = ops.quantile_codes(weight, norm)
    return codes


def levels_of(sparsities: Sequence[float], pattern: Pattern | None = None) -> tuple[int, ...]:
    """Whole levels of layers, 0 to 255, of the same sum as their sparsities as nearly as levels allow.

    Levels are rounded down, and those that lost most are raised again. Under N:M they are multiples of ``256 / m``
    where m divides 256, and elsewhere the least level that removes as many of a group.

    Args:
        sparsities: of layers of equal size, each in [0, 1).
        pattern: None for unstructured.
    """
    parts = pattern.m if pattern is not None and pattern.grouped else LEVELS
    exact = torch.tensor(sparsities, dtype=torch.float64) * parts
    levels = exact.floor()
    missing = round(float(exact.sum() - levels.sum()))
    # Stable: of equal losses the first layers are raised.
    order = (exact - levels).argsort(descending=True, stable=True)
    levels[order[:missing]] += 1
    whole = levels.clamp_(0, parts - 1).long().tolist()
    return tuple(-(-level * LEVELS // parts) for level in whole)
