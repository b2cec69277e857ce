"""Cases of exact selection of the smallest scores, per row and over a whole matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.bench.case import Baseline, Inputs, Work, case, size
from pruneengine.bench.gate import covers, exactly
from pruneengine.bench.shapes import Matrix


def metric(w: Tensor, norm: Tensor) -> Tensor:
    """Return Wanda's score ``|W| * norm`` in float32."""
    return w.float().abs() * norm


def _row_sort(scores: Tensor, k: int) -> Tensor:
    smallest = scores.sort(dim=1, stable=True).indices[:, :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, smallest, True)


def _inputs(inputs: Inputs, shape: Matrix) -> tuple[Tensor, Tensor]:
    return inputs.normal(shape.rows, shape.columns), inputs.norm(shape.columns)


@case("kth_value", "median of |W| norm, each row", "weight", "read")
def kth_value(inputs: Inputs, shape: Matrix) -> Work:
    w, norm = _inputs(inputs, shape)
    k = (shape.columns + 1) // 2

    def formula(up, w, norm):
        return metric(w, norm).kthvalue(k, dim=1).values

    return Work((w, norm), lambda w, norm: ops.kth_value(w, k, norm), formula, exactly, size(w))


@case("select_mask", "Wanda 50%, each row", "weight", "copy")
def select_mask(inputs: Inputs, shape: Matrix) -> Work:
    """Make the case with Wanda's own reference: metric, stable sort of each row, scatter."""
    w, norm = _inputs(inputs, shape)
    k = shape.columns // 2

    def formula(up, w, norm):
        return _row_sort(metric(w, norm), k)

    def by_threshold(w, norm):
        scores = metric(w, norm)
        return scores <= scores.kthvalue(k, dim=1, keepdim=True).values

    return Work(
        (w, norm),
        lambda w, norm: ops.select_mask(w, k, norm),
        formula,
        exactly,
        size(w) + w.numel(),
        baselines={"kthvalue": Baseline(by_threshold, covers)},
    )


@case("kth_value_global", "median of |W| norm, whole matrix", "weight", "read")
def kth_value_global(inputs: Inputs, shape: Matrix) -> Work:
    w, norm = _inputs(inputs, shape)
    k = w.numel() // 2

    def formula(up, w, norm):
        return metric(w, norm).flatten().kthvalue(k).values[None]

    return Work((w, norm), lambda w, norm: ops.kth_value_global([w], k, [norm]), formula, exactly, size(w))


@case("select_mask_global", "Wanda's metric 50%, whole matrix", "weight", "copy")
def select_mask_global(inputs: Inputs, shape: Matrix) -> Work:
    w, norm = _inputs(inputs, shape)
    k = w.numel() // 2

    def formula(up, w, norm):
        return _row_sort(metric(w, norm).view(1, -1), k).view(w.shape)

    def by_threshold(w, norm):
        scores = metric(w, norm)
        return scores <= scores.flatten().kthvalue(k).values

    return Work(
        (w, norm),
        lambda w, norm: ops.select_mask_global([w], k, [norm])[0],
        formula,
        exactly,
        size(w) + w.numel(),
        baselines={"kthvalue": Baseline(by_threshold, covers)},
    )
