"""Codes of weights: masks of every sparsity, decided once from the dense model's statistics, one byte per weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.calibration.statistics import Statistics
from pruneengine.common.errors import InputError
from pruneengine.common.progress import track
from pruneengine.model import get_linear
from pruneengine.sparse.matrices import Matrix
from pruneengine.sparse.pattern import Pattern

LEVELS = 256


def quantile_masks(
    model: nn.Module,
    matrices: Sequence[Matrix],
    statistics: Statistics | None,
    method: str,
    pattern: Pattern | None = None,
) -> dict[str, Tensor]:
    """Return the codes of the weights, for :func:`masked_weights`: uint8 ``[out, in]`` by module path.

    Args:
        model: the dense model.
        matrices: the linears that a pruner would prune.
        statistics: of the dense model, with "squares"; not read for magnitude, and so None will do.
        method: "magnitude" (weights of a matrix compete), "wanda" (those of a row, by ``|W| * norm``, Sun et al. 2024,
            eq. 1) or "sparsegpt", which Wanda's masks stand in for.
        pattern: under N:M the weights of a group compete; :func:`level_of_group` gives the level of a sparsity.

    Raises:
        ValueError: no statistics, or statistics without "squares", where they are read.
    """
    pattern = pattern or Pattern()
    codes = {}
    for matrix in track(matrices, "masks"):
        weight = get_linear(model, matrix.name).weight.detach()
        norm = None
        if method != "magnitude":
            if statistics is None:
                raise InputError(f"method {method!r} needs statistics with 'squares', got None")
            norm = statistics.input_norm(matrix.site).to(weight.device)
        if pattern.grouped or method == "magnitude":
            scores = weight.abs() if norm is None else weight.float().abs() * norm
            columns = weight.numel() if pattern.m is None else pattern.m
            codes[matrix.name] = ops.quantile_codes(scores.reshape(-1, columns)).view(weight.shape)
        else:
            codes[matrix.name] = ops.quantile_codes(weight, norm)
    return codes


def levels_of(sparsities: Sequence[float], sizes: Sequence[int]) -> tuple[int, ...]:
    """Return whole levels of layers, 0 to 255, that remove as nearly as many weights as the sparsities.

    Levels are rounded down. Then those that lost most are raised by one while that brings the sum nearer; of equal
    losses the first.

    Args:
        sparsities: sparsity of each layer, in [0, 1).
        sizes: number of weights of each layer.
    """
    exact = torch.tensor(sparsities, dtype=torch.float64) * LEVELS
    levels = exact.floor()
    lost = exact - levels
    missing = float(lost @ torch.tensor(sizes, dtype=torch.float64))
    for layer in lost.argsort(descending=True, stable=True).tolist():
        if lost[layer] and missing > sizes[layer] / 2:
            levels[layer] += 1
            missing -= sizes[layer]
    return tuple(levels.clamp_(0, LEVELS - 1).long().tolist())


def level_of_group(sparsity: float, m: int) -> int:
    """Return a level whose mask removes from each group of ``m`` as many weights as a sparsity in m-ths."""
    return round(sparsity * m) * LEVELS // m
