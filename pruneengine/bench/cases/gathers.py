"""Cases of gathers: kept rows and columns, into fresh memory and into a given buffer, and of a whole layer."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.bench.case import Inputs, Work, case
from pruneengine.bench.gate import exactly
from pruneengine.bench.shapes import Layer, Matrix
from pruneengine.ops.gathers import compact_bytes


def _moved(inputs: Inputs, weight: Tensor, index: Tensor, axis: int) -> int:
    kept = weight.numel() // weight.shape[axis] * len(index) * weight.element_size()
    return kept + (kept if axis == 0 else weight.shape[0] * inputs.touched(index, weight.element_size()))


def _fresh(inputs: Inputs, shape: Matrix, axis: int, keep: float) -> Work:
    w = inputs.normal(shape.rows, shape.columns)
    index = inputs.kept(w.shape[axis], keep)
    ours = (ops.gather_rows, ops.gather_columns)[axis]
    return Work(
        (w, index), ours, lambda up, w, index: w.index_select(axis, index), exactly, _moved(inputs, w, index, axis)
    )


def _into(inputs: Inputs, shape: Matrix, axis: int, keep: float) -> Work:
    """Make a case in which both sides write into an existing buffer; ours through the op that takes one."""
    w = inputs.normal(shape.rows, shape.columns)
    index = inputs.kept(w.shape[axis], keep)
    arena = torch.empty(compact_bytes([w], [index], [axis]), dtype=torch.uint8, device=w.device)
    out = torch.empty_like(w.index_select(axis, index))
    return Work(
        (w, index),
        lambda w, index: ops.compact_layer([w], [index], [axis], arena)[0],
        lambda up, w, index: torch.index_select(w, axis, index, out=out),
        exactly,
        _moved(inputs, w, index, axis),
    )


for _axis, _op in enumerate(("gather_rows", "gather_columns")):
    for _keep in (0.5, 0.8):
        case(_op, f"keep {_keep}", "weight", "copy")(functools.partial(_fresh, axis=_axis, keep=_keep))
        _given = case(_op, f"keep {_keep}, given buffer", "weight", "copy", compiled=False)
        _given(functools.partial(_into, axis=_axis, keep=_keep))


@case("compact_layer", "q k v o gate up down, keep 0.8, given buffer", "layer", "copy", compiled=False)
def compact_layer(inputs: Inputs, shape: Layer) -> Work:
    """Keep whole KV groups and random channels; both sides write into an existing buffer, as a search does."""
    weights = [inputs.normal(*size) for size in shape.weights]
    groups, wide = inputs.kept(shape.kv_heads, 0.8), inputs.kept(shape.intermediate, 0.8)
    keys = _expand(groups, shape.head_dim)
    queries = _expand(groups, shape.head_dim * (shape.heads // shape.kv_heads))
    indices = [queries, keys, keys, queries, wide, wide, wide]
    axes = [0, 0, 0, 1, 0, 0, 1]
    arena = torch.empty(compact_bytes(weights, indices, axes), dtype=torch.uint8, device=weights[0].device)
    parts = list(zip(weights, indices, axes, strict=True))
    outs = [torch.empty_like(w.index_select(axis, i)) for w, i, axis in parts]
    return Work(
        (weights, indices),
        lambda weights, indices: ops.compact_layer(weights, indices, axes, arena),
        lambda up, weights, indices: [
            torch.index_select(w, axis, i, out=out)
            for w, i, axis, out in zip(weights, indices, axes, outs, strict=True)
        ],
        exactly,
        sum(_moved(inputs, *part) for part in parts),
    )


def _expand(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()
