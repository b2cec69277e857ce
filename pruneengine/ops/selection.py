"""Ops that select the smallest scores exactly, without a sort: per row, or over whole matrices.

Scores are the given values or, with a norm, ``|value| * norm`` in float32: Wanda's metric (Sun et al. 2024, eq. 1),
never materialised. The k smallest are selected. Of equal scores at the border, the first in the order of matrices, rows
and columns are selected. ``-0.0`` and ``0.0`` are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruneengine.ops.checks import require_beside, require_matrix, require_norm
from pruneengine.ops.extension import empty_mask
from pruneengine.ops.registry import floats, register


def _require_rank(k: int, lowest: int, highest: int, of: str) -> None:
    if not lowest <= k <= highest:
        raise ValueError(f"k is {k}; expected {lowest} <= k <= {highest}, the {of}")


def _check_rows(scores: Tensor, k: int, norm: Tensor | None, lowest: int) -> None:
    require_matrix("scores", scores)
    require_norm(norm, "scores", scores)
    _require_rank(k, lowest, scores.shape[1], "columns of scores")


def _check_matrices(matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None, lowest: int) -> None:
    if len(matrices) == 0:
        raise ValueError("matrices is empty; expected at least one matrix")
    if norms is not None and len(norms) != len(matrices):
        raise ValueError(f"norms holds {len(norms)} tensors; expected {len(matrices)}, one per matrix")
    for i, matrix in enumerate(matrices):
        require_matrix(f"matrices[{i}]", matrix)
        require_norm(None if norms is None else norms[i], f"matrices[{i}]", matrix, f"norms[{i}]")
        require_beside(f"matrices[{i}]", matrix, "matrices[0]", matrices[0])
        if matrix.dtype != matrices[0].dtype:
            raise TypeError(f"matrices[{i}] has dtype {matrix.dtype}; expected {matrices[0].dtype}, as matrices[0]")
    _require_rank(k, lowest, sum(matrix.numel() for matrix in matrices), "number of scores")


_kth_value = register(
    "kth_value",
    "(Tensor scores, int k, Tensor? norm) -> Tensor",
    lambda scores, k, norm: _check_rows(scores, k, norm, 1),
    lambda scores, k, norm: floats(scores, scores.shape[0]),
)
_select_mask = register(
    "select_mask",
    "(Tensor scores, int k, Tensor? norm, bool bits) -> Tensor",
    lambda scores, k, norm, bits: _check_rows(scores, k, norm, 0),
    lambda scores, k, norm, bits: empty_mask(scores, bits),
)
_kth_value_global = register(
    "kth_value_global",
    "(Tensor[] matrices, int k, Tensor[]? norms) -> Tensor",
    lambda matrices, k, norms: _check_matrices(matrices, k, norms, 1),
    lambda matrices, k, norms: floats(matrices[0], 1),
)
_select_mask_global = register(
    "select_mask_global",
    "(Tensor[] matrices, int k, Tensor[]? norms, bool bits) -> Tensor[]",
    lambda matrices, k, norms, bits: _check_matrices(matrices, k, norms, 0),
    lambda matrices, k, norms, bits: [empty_mask(matrix, bits) for matrix in matrices],
)


# From this length on a single row gets the whole device, not one block or thread of it.
LONG_ROW = 1 << 18


def _is_one_long_row(scores: Tensor) -> bool:
    return scores.dim() == 2 and scores.shape[0] == 1 and scores.shape[1] >= LONG_ROW


def kth_value(scores: Tensor, k: int, norm: Tensor | None = None) -> Tensor:
    """Return the k-th smallest score of each row: float32 ``[R]``; a zero comes back as ``0.0``.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN.
        k: rank, counted from 1, at most ``C``.
        norm: None, or one non-negative float32 factor per column ``[C]``: the scores are ``|scores| * norm``.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or a ``k`` out of range.
    """
    if _is_one_long_row(scores):
        _check_rows(scores, k, norm, 1)
        return kth_value_global([scores], k, None if norm is None else [norm])
    return _kth_value(scores, k, norm)


def select_mask(scores: Tensor, k: int, norm: Tensor | None = None, bits: bool = False) -> Tensor:
    """Return True at exactly the k smallest scores of each row: bool ``[R, C]``.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN.
        k: number of scores to select per row, ``0 <= k <= C``.
        norm: None, or one non-negative float32 factor per column ``[C]``: the scores are ``|scores| * norm``.
        bits: pack the mask into uint8 ``[R, ceil(C / 8)]``: column ``8 j + i`` is bit ``i`` (value ``2^i``) of byte
            ``j``, and the bits past ``C`` are zero.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or a ``k`` out of range.
    """
    if _is_one_long_row(scores):
        _check_rows(scores, k, norm, 0)
        return select_mask_global([scores], k, None if norm is None else [norm], bits)[0]
    return _select_mask(scores, k, norm, bits)


def kth_value_global(matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None = None) -> Tensor:
    """Return the k-th smallest score over all matrices together: float32 ``[1]``; one matrix is a sequence of one.

    Args:
        matrices: ``[R_i, C_i]`` each, all of one dtype (float32, float16 or bfloat16), rows contiguous, without NaN.
        k: rank, counted from 1, at most the number of scores.
        norms: None, or a non-negative float32 ``[C_i]`` per matrix: the scores are ``|matrix| * norm``.

    Raises:
        TypeError: another dtype, or different ones.
        ValueError: no matrices, another shape or device, rows that are not contiguous, or a ``k`` out of range.
    """
    return _kth_value_global(matrices, k, norms)


def select_mask_global(
    matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None = None, bits: bool = False
) -> list[Tensor]:
    """Return True at exactly the k smallest scores of all matrices together: a mask per matrix.

    Args:
        matrices: ``[R_i, C_i]`` each, all of one dtype (float32, float16 or bfloat16), rows contiguous, without NaN.
        k: number of scores to select in all, from 0 to the number of scores.
        norms: None, or a non-negative float32 ``[C_i]`` per matrix: the scores are ``|matrix| * norm``.
        bits: pack the masks as :func:`select_mask` does.

    Raises:
        TypeError: another dtype, or different ones.
        ValueError: no matrices, another shape or device, rows that are not contiguous, or a ``k`` out of range.
    """
    return _select_mask_global(matrices, k, norms, bits)
