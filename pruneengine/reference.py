"""Every op in plain PyTorch: the specification, the fallback and the baseline.

Each function takes the same arguments as its namesake in :mod:`pruneengine.ops` and returns float32
(or the input's dtype for gathers). Inputs are upcast once; nothing here is fast, everything is plain.
"""

from __future__ import annotations

import torch
from torch import Tensor


def activation_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, sum of squares and largest magnitude over tokens, per sample and channel.

    Args:
        x: activations ``[N, T, C]``, float32, float16 or bfloat16, any strides.

    Returns:
        ``(total, squares, peak)``, each float32 ``[N, C]``; all zero when ``T == 0``.
    """
    x = x.float()
    peak = x.abs().amax(1) if x.shape[1] else x.new_zeros(x.shape[0], x.shape[2])
    return x.sum(1), x.square().sum(1), peak


def gate_scores(x: Tensor, dx: Tensor) -> Tensor:
    """Sum over tokens of ``x * dL/dx``, per sample and channel: float32 ``[N, C]``.

    It is minus the first-order change of the loss when the channel is gated to zero; at a linear layer's output it
    equals the row sums of ``W * dL/dW``, at its input the column sums, so no weight gradient is needed.

    Args:
        x: activations ``[N, T, C]``, float32, float16 or bfloat16, any strides.
        dx: the gradient of the loss at ``x``, same shape and dtype.
    """
    return (x.float() * dx.float()).sum(1)


def weight_scores(
    weight: Tensor, norm: Tensor | None = None, power: float = 1.0, norm_power: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Row and column sums of ``|W|^power * norm^norm_power``.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous (``stride(1) == 1``).
        norm: one non-negative float32 factor per column ``[C]`` (an activation norm), or None for 1.
        power: exponent of the magnitude, > 0.
        norm_power: exponent of the norm, > 0.

    Returns:
        ``(rows, columns)``: float32 ``[R]`` and ``[C]``.
    """
    scores = weight.float().abs().pow(power)
    if norm is not None:
        scores = scores * norm.pow(norm_power)
    return scores.sum(1), scores.sum(0)


def taylor_scores(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column sums of ``W * G``: signed, absolute and squared, in one read of both.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous.
        gradient: ``[R, C]``, float32 or the weight's dtype, rows contiguous.

    Returns:
        ``(rows, columns)``: float32 ``[3, R]`` and ``[3, C]``; index 0 is ``sum(w*g)``, 1 is ``sum(|w*g|)``,
        2 is ``sum((w*g)^2)``.
    """
    product = weight.float() * gradient.float()
    forms = torch.stack([product, product.abs(), product.square()])
    return forms.sum(2), forms.sum(1)


def kth_value(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest value of each row (``1 <= k <= C``): float32 ``[R]``.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN.
        k: rank, counted from 1.
    """
    return scores.float().kthvalue(k, dim=1).values


def select_mask(scores: Tensor, k: int) -> Tensor:
    """True at exactly the k smallest scores of each row: bool ``[R, C]``.

    Tie rule: of equal scores at the border those with the lowest column index are selected, which is what a stable
    ascending sort does. ``-0.0`` and ``0.0`` are equal.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN.
        k: how many a row, ``0 <= k <= C``.
    """
    order = scores.float().argsort(dim=1, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, order[:, :k], True)


def gather_rows(weight: Tensor, index: Tensor) -> Tensor:
    """The rows of ``weight`` named by ``index``, as a new contiguous tensor of the same dtype.

    Args:
        weight: ``[R, C]`` (or ``[R]``, a bias), any dtype of 1, 2, 4 or 8 bytes, rows contiguous.
        index: int64 ``[K]``, each in ``[0, R)``.
    """
    return weight.index_select(0, index)


def gather_columns(weight: Tensor, index: Tensor) -> Tensor:
    """The columns of ``weight`` named by ``index``, as a new contiguous tensor of the same dtype.

    Args:
        weight: ``[R, C]``, any dtype of 1, 2, 4 or 8 bytes, rows contiguous.
        index: int64 ``[K]``, each in ``[0, C)``, ascending or not.
    """
    return weight.index_select(1, index)
