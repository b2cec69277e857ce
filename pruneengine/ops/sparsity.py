"""Ops for sparse weights: n:m masks, and masks of any sparsity from one byte per weight.

Scores are the given values or, with a norm, ``|value| * norm`` in float32, never materialised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneengine.ops.checks import (
    require_beside,
    require_dims,
    require_dtype,
    require_like,
    require_matrix,
    require_norm,
    require_rows,
    require_shape,
)
from pruneengine.ops.registry import register


def _check_nm(scores: Tensor, n: int, m: int, norm: Tensor | None) -> None:
    require_matrix("scores", scores)
    require_norm(norm, "scores", scores)
    if not 0 < m <= 32 or not 0 <= n <= m:
        raise ValueError(f"n:m is {n}:{m}; expected n kept of m, 0 <= n <= m and 1 <= m <= 32")
    if scores.shape[1] % m:
        raise ValueError(f"m is {m}; expected a divisor of {scores.shape[1]}, the columns of scores")


def _check_nm_apply(weight: Tensor, n: int, m: int, norm: Tensor | None, out: Tensor) -> None:
    _check_nm(weight, n, m, norm)
    require_like("out", out, "weight", weight)
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}; expected a contiguous tensor")


def _check_codes(scores: Tensor, norm: Tensor | None) -> None:
    require_matrix("scores", scores)
    require_norm(norm, "scores", scores)


def _check_masked_copy(weight: Tensor, codes: Tensor, level: int, out: Tensor) -> None:
    if weight.element_size() not in (1, 2, 4, 8):
        raise TypeError(f"weight has dtype {weight.dtype}; expected one of 1, 2, 4 or 8 bytes")
    require_dims("weight", weight, "[R, C]")
    require_dtype("codes", codes, torch.uint8)
    require_dtype("out", out, weight.dtype)
    for name, tensor in (("codes", codes), ("out", out)):
        require_shape(name, tensor, weight.shape, "as weight")
        require_beside(name, tensor, "weight", weight)
    for name, tensor in (("weight", weight), ("codes", codes), ("out", out)):
        require_rows(name, tensor)
    if not 0 <= level <= 256:
        raise ValueError(f"level is {level}; expected 0 <= level <= 256")


_nm_mask = register(
    "nm_mask",
    "(Tensor scores, int n, int m, Tensor? norm) -> Tensor",
    _check_nm,
    lambda scores, n, m, norm: scores.new_empty(scores.shape, dtype=torch.bool),
)
_nm_apply = register(
    "nm_apply",
    "(Tensor weight, int n, int m, Tensor? norm, Tensor(a!) out) -> ()",
    _check_nm_apply,
    lambda weight, n, m, norm, out: None,
)
_quantile_codes = register(
    "quantile_codes",
    "(Tensor scores, Tensor? norm) -> Tensor",
    _check_codes,
    lambda scores, norm: scores.new_empty(scores.shape, dtype=torch.uint8),
)
_masked_copy = register(
    "masked_copy",
    "(Tensor weight, Tensor codes, int level, Tensor(a!) out) -> ()",
    _check_masked_copy,
    lambda weight, codes, level, out: None,
)


def nm_mask(scores: Tensor, n: int, m: int, norm: Tensor | None = None) -> Tensor:
    """Return True at the m - n smallest scores of every m consecutive columns: bool ``[R, C]``.

    A weight that is set to zero there keeps n of every m.

    2:4 is ``n=2, m=4``. Of equal scores at the border those with the lowest column index are selected; ``-0.0`` and
    ``0.0`` are equal.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN; for magnitude pruning
            ``weight.abs()``.
        n: number of weights kept per group, ``0 <= n <= m``.
        m: size of a group, at most 32; divides ``C``.
        norm: None, or one non-negative float32 factor per column ``[C]``: the scores are ``|scores| * norm``.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or ``n`` and ``m`` out of range.
    """
    return _nm_mask(scores, n, m, norm)


def nm_apply(weight: Tensor, n: int, m: int, norm: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return the weight with the m - n smallest of every m consecutive columns set to zero.

    One read and one write. Scores are ``|weight| * norm``, or ``|weight|`` without a norm; ties as in :func:`nm_mask`.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN.
        n: number of weights kept per group, ``0 <= n <= m``.
        m: size of a group, at most 32; divides ``C``.
        norm: None for 1, or one non-negative float32 factor per column ``[C]``.
        out: buffer for the result: contiguous, of the weight's shape and dtype; may be ``weight`` itself, not a part of
            it. None for a new tensor.

    Returns:
        ``out``.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or ``n`` and ``m`` out of range.
    """
    if out is None:
        out = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    _nm_apply(weight, n, m, norm, out)
    return out


def quantile_codes(scores: Tensor, norm: Tensor | None = None) -> Tensor:
    """Return one byte per weight that holds the masks of all sparsities: uint8 ``[R, C]``.

    The code of a score is ``floor(256 r / C)``, r being its ascending rank in its row, counted from 0. Equal scores
    rank by column. So ``codes < level`` selects exactly the ``ceil(level C / 256)`` smallest scores of a row. That is
    the mask of sparsity ``level / 256``, rounded up to whole weights.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN. One row compares a whole matrix:
            ``weight.view(1, -1)``; on a CPU a row is one thread's work.
        norm: None, or one non-negative float32 factor per column ``[C]``: the scores are ``|scores| * norm``.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, or rows that are not contiguous.
    """
    return _quantile_codes(scores, norm)


def masked_copy(weight: Tensor, codes: Tensor, level: int, out: Tensor) -> Tensor:
    """Write the weight at sparsity ``level / 256`` into a buffer: ``out = weight where codes >= level, else 0``.

    Args:
        weight: ``[R, C]``, any dtype of 1, 2, 4 or 8 bytes, rows contiguous.
        codes: uint8 ``[R, C]`` of :func:`quantile_codes`, rows contiguous.
        level: ``0 <= level <= 256``; 0 copies, 256 clears.
        out: ``[R, C]`` of the weight's dtype, rows contiguous; may be ``weight`` itself, not a part of it.

    Returns:
        ``out``.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or a ``level`` out of range.
    """
    _masked_copy(weight, codes, level, out)
    return out
