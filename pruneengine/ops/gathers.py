"""Ops that gather kept rows and columns, and a whole layer into one buffer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pruneengine.ops.checks import require_beside, require_dims, require_dtype, require_range, require_rows
from pruneengine.ops.registry import register

ALIGNMENT = 64  # bytes: a cache line, and enough for any vector load


def _check_gather(weight: Tensor, index: Tensor, *shapes: str) -> None:
    if weight.element_size() not in (1, 2, 4, 8):
        raise TypeError(f"weight has dtype {weight.dtype}; expected one of 1, 2, 4 or 8 bytes")
    require_dims("weight", weight, *shapes)
    require_rows("weight", weight)
    require_dtype("index", index, torch.int64)
    require_dims("index", index, "[K]")
    require_beside("index", index, "weight", weight)


def _check_parts(weights: Sequence[Tensor], indices: Sequence[Tensor], axes: Sequence[int]) -> None:
    if not len(weights) == len(indices) == len(axes) or len(weights) == 0:
        raise ValueError(
            f"{len(weights)} weights, {len(indices)} indices, {len(axes)} axes; expected as many of each, at least one"
        )
    for weight, index, axis in zip(weights, indices, axes, strict=True):
        if axis not in (0, 1):
            raise ValueError(f"axis is {axis}; expected 0 (rows) or 1 (columns)")
        _check_gather(weight, index, *(("[R, C]", "[R]") if axis == 0 else ("[R, C]",)))


def _check_compact(
    weights: Sequence[Tensor], indices: Sequence[Tensor], axes: Sequence[int], offsets: Sequence[int], arena: Tensor
) -> None:
    needed = compact_bytes(weights, indices, axes)
    require_dtype("arena", arena, torch.uint8)
    for weight in weights:
        require_beside("weight", weight, "arena", arena)
    if arena.dim() != 1 or not arena.is_contiguous() or arena.numel() < needed:
        raise ValueError(f"arena has shape {list(arena.shape)}; expected at least [{needed}] contiguous bytes")
    if len(offsets) != len(weights):
        raise ValueError(f"offsets holds {len(offsets)} numbers; expected {len(weights)}, one per weight")
    for weight, shape, begin in zip(weights, _shapes(weights, indices, axes), offsets, strict=True):
        if begin < 0 or begin % ALIGNMENT or begin + math.prod(shape) * weight.element_size() > arena.numel():
            raise ValueError(f"offset is {begin}; expected a multiple of {ALIGNMENT} before the end of the arena")


def _check_compact_values(
    weights: Sequence[Tensor], indices: Sequence[Tensor], axes: Sequence[int], offsets: Sequence[int], arena: Tensor
) -> None:
    for weight, index, axis in zip(weights, indices, axes, strict=True):
        require_range(index, weight.shape[axis])
    if arena.data_ptr() % ALIGNMENT:
        raise ValueError(f"arena starts at {arena.data_ptr():#x}; expected a multiple of {ALIGNMENT}")


def _shapes(weights: Sequence[Tensor], indices: Sequence[Tensor], axes: Sequence[int]) -> list[list[int]]:
    shapes = [list(weight.shape) for weight in weights]
    for shape, index, axis in zip(shapes, indices, axes, strict=True):
        shape[axis] = index.shape[0]
    return shapes


def _offsets(weights: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[int]:
    """Return the start of each result in the arena, in bytes, and the end of the last one."""
    offsets = [0]
    for weight, shape in zip(weights, shapes, strict=True):
        offsets.append(offsets[-1] + -(-math.prod(shape) * weight.element_size() // ALIGNMENT) * ALIGNMENT)
    return offsets


_gather_rows = register(
    "gather_rows",
    "(Tensor weight, Tensor index) -> Tensor",
    lambda weight, index: _check_gather(weight, index, "[R, C]", "[R]"),
    lambda weight, index: weight.new_empty(index.shape[0], *weight.shape[1:]),
    lambda weight, index: require_range(index, weight.shape[0]),
)
_gather_columns = register(
    "gather_columns",
    "(Tensor weight, Tensor index) -> Tensor",
    lambda weight, index: _check_gather(weight, index, "[R, C]"),
    lambda weight, index: weight.new_empty(weight.shape[0], index.shape[0]),
    lambda weight, index: require_range(index, weight.shape[1]),
)
_compact_layer = register(
    "compact_layer",
    "(Tensor[] weights, Tensor[] indices, int[] axes, int[] offsets, Tensor(a!) arena) -> ()",
    _check_compact,
    lambda weights, indices, axes, offsets, arena: None,
    _check_compact_values,
)


def gather_rows(weight: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``weight`` named by ``index``, as a new contiguous tensor of the same dtype.

    Args:
        weight: ``[R, C]`` (or ``[R]``, a bias), any dtype of 1, 2, 4 or 8 bytes, rows contiguous.
        index: int64 ``[K]``, each in ``[0, R)``, in any order.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or on a CPU an index out of range (on a GPU
            it stops the kernel, as in torch).
    """
    return _gather_rows(weight, index)


def gather_columns(weight: Tensor, index: Tensor) -> Tensor:
    """Return the columns of ``weight`` named by ``index``, as a new contiguous tensor of the same dtype.

    Args:
        weight: ``[R, C]``, any dtype of 1, 2, 4 or 8 bytes, rows contiguous.
        index: int64 ``[K]``, each in ``[0, C)``; ascending is fastest.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or on a CPU an index out of range (on a GPU
            it stops the kernel, as in torch).
    """
    return _gather_columns(weight, index)


def compact_bytes(weights: Sequence[Tensor], indices: Sequence[Tensor], axes: Sequence[int]) -> int:
    """Return the number of bytes that :func:`compact_layer` needs in its arena."""
    _check_parts(weights, indices, axes)
    return _offsets(weights, _shapes(weights, indices, axes))[-1]


def compact_layer(
    weights: Sequence[Tensor], indices: Sequence[Tensor], axes: Sequence[int], arena: Tensor | None = None
) -> list[Tensor]:
    """Return the kept rows or columns of many tensors: q, k, v and o, or gate, up and down, and their biases.

    Args:
        weights: ``[R_i, C_i]`` (or ``[R_i]``, a bias), any dtypes of 1, 2, 4 or 8 bytes, rows contiguous.
        indices: int64 ``[K_i]`` each, as for :func:`gather_rows` and :func:`gather_columns`; may repeat one tensor.
        axes: 0 to keep rows, 1 to keep columns, per weight.
        arena: uint8 ``[bytes]``, at least :func:`compact_bytes`, starting at a multiple of 64 bytes; a search reuses
            one for every candidate. None allocates it. None of ``weights`` may lie in it.

    Returns:
        Contiguous views into the arena, one per weight, each aligned to 64 bytes.

    Raises:
        TypeError: another dtype.
        ValueError: counts that differ, another shape, axis or device, rows that are not contiguous, an arena that is
            too small, or on a CPU an index out of range.
    """
    _check_parts(weights, indices, axes)
    shapes = _shapes(weights, indices, axes)
    *offsets, needed = _offsets(weights, shapes)
    if arena is None:
        arena = weights[0].new_empty(needed, dtype=torch.uint8)
    _compact_layer(weights, indices, axes, offsets, arena)
    return [
        arena[begin : begin + math.prod(shape) * weight.element_size()].view(weight.dtype).view(shape)
        for weight, shape, begin in zip(weights, shapes, offsets, strict=True)
    ]
