"""SparseGPT's column loop (Frantar & Alistarh 2023, algorithm 1).

H is the Hessian of a linear's squared error, and ``H^-1 = U^T U`` with U upper triangular. Removing the weight ``w_j``
of a row costs ``w_j^2 / U_jj^2``; the columns behind it make up for it by ``-(w_j / U_jj) U_j,j+1:``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.common.errors import InputError

# As a multiple of the diagonal's mean. With stronger damping nothing of the Hessian would be left.
STRONGEST_DAMPING = 10.0
# Columns that are updated together: one matrix product in place of 32 smaller ones.
_STRIDE = 32
# Triangular matrices up to this size are inverted by a solver.
_SOLVED = 128


@dataclass(frozen=True)
class Share:
    """The rows of one of the stacked linears, and the number of weights that it loses.

    Attributes:
        rows: of the stack.
        count: number of weights to remove where there is no pattern.
        kept: N of the N:M pattern; None without a pattern.
    """

    rows: slice
    count: int
    kept: int | None


def inverse_factor(hessian: Tensor, damp: float) -> tuple[Tensor, float]:
    """Return the upper triangular U of ``(H + damping)^-1 = U^T U``, and the damping that was needed.

    Where there is no Cholesky factor, the next attempt has ten times the damping.

    Args:
        hessian: float32 ``[C, C]``, symmetric, with a positive diagonal; changed in place.
        damp: added to the diagonal, as a fraction of its mean.

    Raises:
        ValueError: there is no factor up to :data:`STRONGEST_DAMPING`.
    """
    diagonal = hessian.diagonal()
    mean, own = diagonal.mean(), diagonal.clone()
    while True:
        diagonal.copy_(own + damp * mean)
        # Backwards, so that the factor is of the form that its inverse needs: H = R R^T with R upper, and U = R^-1.
        lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
        if not int(failed):
            factor = _inverse(lower.flip(0, 1))
            if bool(factor.isfinite().all()):
                return factor, damp
        if damp >= STRONGEST_DAMPING:
            raise InputError(f"no Cholesky factor of the Hessian, up to a damping of {damp:g} times its mean diagonal")
        damp = min(10 * damp, STRONGEST_DAMPING)


def _inverse(upper: Tensor) -> Tensor:
    """Return the inverse of an upper triangular ``[C, C]``.

    Works by halves, in products of matrices: three times as fast as solving for the unit matrix.
    """
    size = len(upper)
    if size <= _SOLVED:
        return torch.linalg.solve_triangular(upper, torch.eye(size, device=upper.device), upper=True)
    first, second = slice(0, size // 2), slice(size // 2, size)
    result = torch.zeros_like(upper)
    result[first, first] = _inverse(upper[first, first])
    result[second, second] = _inverse(upper[second, second])
    result[first, second] = (result[first, first] @ upper[first, second] @ result[second, second]).neg_()
    return result


def prune_columns(
    columns: Tensor, factor: Tensor, dead: Tensor, shares: Sequence[Share], block: int, m: int | None
) -> None:
    """Prune stacked linears that read one input; the remaining weights make up for the removed ones.

    Args:
        columns: float32 ``[C, R]``, contiguous: the transposed weights one beside the other; changed in place.
        factor: U of :func:`inverse_factor`.
        dead: bool ``[C]``, inputs that are always zero: their weights go first.
        shares: one per stacked linear.
        block: number of columns whose weights compete and whose errors are handed on together.
        m: M of the N:M pattern, a divisor of ``block`` and of C; None for unstructured.
    """
    total = len(columns)
    scale = factor.diagonal().reciprocal()
    worth = scale.masked_fill(dead, 0)
    stride = m or _STRIDE
    for start in range(0, total, block):
        stop = min(start + block, total)
        part, upper, inverse = columns[start:stop], factor[start:stop, start:stop], scale[start:stop, None]
        errors = torch.empty_like(part)
        removed = torch.empty_like(part, dtype=torch.bool)
        if m is None:
            for share in shares:
                count = share.count * stop // total - share.count * start // total
                removed[:, share.rows] = _cheapest(part[:, share.rows] * worth[start:stop, None], count)
        for first in range(0, stop - start, stride):
            now = slice(first, min(first + stride, stop - start))
            if first:
                part[now].addmm_(upper[:first, now].T, errors[:first], alpha=-1)
            if m is not None:
                rows = part[now].T.contiguous()
                for share in shares:
                    assert share.kept is not None  # every share has N where there is a pattern
                    removed[now, share.rows] = ops.nm_mask(rows[share.rows], share.kept, m, worth[start:stop][now]).T
            weight = removed[now] * inverse[now]
            for i in range(now.start, now.stop):
                if i > first:
                    part[i].addmv_(errors[first:i].T, upper[first:i, i], alpha=-1)
                torch.mul(part[i], weight[i - first], out=errors[i])
        part.masked_fill_(removed, 0)
        if stop < total:
            columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)


def _cheapest(costs: Tensor, count: int) -> Tensor:
    """Return True at the ``count`` entries of smallest magnitude: bool, of the shape of ``costs``."""
    return ops.select_mask(costs.abs_().view(1, -1), count).view_as(costs)
