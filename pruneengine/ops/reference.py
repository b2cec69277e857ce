"""Reference of every op in plain PyTorch: the specification, the fallback and the baseline.

Arguments, shapes and dtypes are those of the namesake in :mod:`pruneengine.ops`, as registered there. Where the public
function takes a number or a sequence, these functions take a list. Inputs are upcast once. The code is plain, not
fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTS = ("count", "sum", "sum2", "sum3", "sum4", "min", "max", "positive", "log", "log2", "slog", "s2log")
HISTOGRAM_BINS = 2048
# A bin is the upper 14 bits of a float32: 32 per octave. The first starts at 2^-44.
HISTOGRAM_SHIFT, HISTOGRAM_FIRST = 18, (127 - 44) << 5


def activation_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(total, squares, peak)`` over tokens: float32 ``[N, C]`` each; all zero when ``T == 0``."""
    x = x.float()
    peak = x.abs().amax(1) if x.shape[1] else x.new_zeros(x.shape[0], x.shape[2])
    return x.sum(1), x.square().sum(1), peak


def gate_scores(x: Tensor, dx: Tensor) -> Tensor:
    """Return the sum over tokens of ``x * dx``: float32 ``[N, C]``."""
    return (x.float() * dx.float()).sum(1)


def weight_scores(
    weight: Tensor, norms: Tensor | None, powers: Sequence[float], norm_powers: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return row and column sums of K scores ``|W|^power * norm^norm_power``: float32 ``[K, R]`` and ``[K, C]``."""
    rows, columns = [], []
    for i, (power, norm_power) in enumerate(zip(powers, norm_powers, strict=True)):
        scores = raised(weight, None if norms is None else norms[i], power, norm_power)
        rows.append(scores.sum(1))
        columns.append(scores.sum(0))
    return torch.stack(rows), torch.stack(columns)


def taylor_scores(weight: Tensor, gradient: Tensor, absolute_only: bool = False) -> tuple[Tensor, Tensor]:
    """Return row and column sums of ``p = W * G``, of ``|p|`` and of ``p^2``: float32 ``[3, R]`` and ``[3, C]``.

    With ``absolute_only`` return those of ``|p|`` alone: ``[1, R]`` and ``[1, C]``.
    """
    product = weight.float() * gradient.float()
    forms = torch.stack([product.abs()] if absolute_only else [product, product.abs(), product.square()])
    return forms.sum(2), forms.sum(1)


def taylor_scores_outer(weight: Tensor, delta: Tensor, x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    """Return the same sums for ``G = delta^T x`` over all tokens, or per sample: ``[N or 1, 3, R]`` and ``[.., C]``."""
    delta, x = delta.float(), x.float()
    if not per_sample:
        delta, x = delta.flatten(0, 1)[None], x.flatten(0, 1)[None]
    sums = [taylor_scores(weight, d.T @ s) for d, s in zip(delta, x, strict=True)]
    if not sums:
        nothing = [weight.new_zeros(0, 3, size, dtype=torch.float32) for size in weight.shape]
        return nothing[0], nothing[1]
    rows, columns = zip(*sums, strict=True)
    return torch.stack(rows), torch.stack(columns)


def block_moments(
    weight: Tensor, norm: Tensor | None, power: float, norm_power: float, thresholds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(moments, above, histogram)`` of the scores: float64 ``[12]``, int64 ``[K]``, int64 ``[2048]``."""
    scores = raised(weight, norm, power, norm_power).flatten()
    s = scores.double()
    log = s[s > 0].log()
    positive = s[s > 0]
    nothing = s.numel() == 0
    moments = [s.new_tensor(float(s.numel())), s.sum(), s.square().sum(), s.pow(3).sum(), s.pow(4).sum()]
    moments += [s.new_tensor(math.inf) if nothing else s.min(), s.new_tensor(-math.inf) if nothing else s.max()]
    moments += [s.new_tensor(float(positive.numel())), log.sum(), log.square().sum()]
    moments += [(positive * log).sum(), (positive.square() * log).sum()]
    above = (scores[None, :] > thresholds[:, None]).sum(1)
    bins = (scores.view(torch.int32) >> HISTOGRAM_SHIFT) - HISTOGRAM_FIRST
    histogram = bins.clamp(0, HISTOGRAM_BINS - 1).bincount(minlength=HISTOGRAM_BINS)
    return torch.stack(moments), above, histogram


def histogram_edges() -> Tensor:
    """Return the lower edges of the bins of :func:`block_moments`: float32 ``[2048]``.

    The first bin also holds all smaller scores.
    """
    bits = torch.arange(HISTOGRAM_FIRST, HISTOGRAM_FIRST + HISTOGRAM_BINS, dtype=torch.int32) << HISTOGRAM_SHIFT
    return bits.view(torch.float32)


def raised(weight: Tensor, norm: Tensor | None, power: float, norm_power: float) -> Tensor:
    """Return the scores ``|W|^power * norm^norm_power``: float32 ``[R, C]``."""
    scores = weight.float().abs().pow(power)
    return scores if norm is None else scores * norm.pow(norm_power)


def scores_of(values: Tensor, norm: Tensor | None) -> Tensor:
    """Return the scores that selections order: the values, or ``|value| * norm``, in float32, no negative zeros."""
    return (values.float() if norm is None else values.float().abs() * norm) + 0.0


def kth_value(scores: Tensor, k: int, norm: Tensor | None = None) -> Tensor:
    """Return the k-th smallest score of each row (``1 <= k <= C``): float32 ``[R]``."""
    return scores_of(scores, norm).kthvalue(k, dim=1).values


def select_mask(scores: Tensor, k: int, norm: Tensor | None = None, bits: bool = False) -> Tensor:
    """Return True at exactly the k smallest scores of each row: those that a stable ascending sort puts first."""
    order = scores_of(scores, norm).argsort(dim=1, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :k], True)
    return packed(mask) if bits else mask


def kth_value_global(matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None = None) -> Tensor:
    """Return the k-th smallest score over all matrices: float32 ``[1]``."""
    return kth_value(_in_one_row(matrices, norms), k)


def select_mask_global(
    matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None = None, bits: bool = False
) -> list[Tensor]:
    """Return True at exactly the k smallest scores of all matrices.

    Of equal scores the first in the order of matrices, rows and columns are selected.
    """
    parts = select_mask(_in_one_row(matrices, norms), k)[0].split([matrix.numel() for matrix in matrices])
    masks = [part.view(matrix.shape) for part, matrix in zip(parts, matrices, strict=True)]
    return [packed(mask) if bits else mask.clone() for mask in masks]


def _in_one_row(matrices: Sequence[Tensor], norms: Sequence[Tensor] | None) -> Tensor:
    factors: Sequence[Tensor | None] = norms or [None] * len(matrices)
    pairs = zip(matrices, factors, strict=True)
    return torch.cat([scores_of(matrix, norm).flatten() for matrix, norm in pairs])[None]


def packed(mask: Tensor) -> Tensor:
    """Return a bool mask ``[R, C]`` as uint8 ``[R, ceil(C / 8)]``, the first column in the lowest bit."""
    columns = mask.shape[1]
    padded = torch.nn.functional.pad(mask, (0, -columns % 8)).unflatten(1, (-1, 8))
    return (padded << torch.arange(8, device=mask.device)).sum(2).to(torch.uint8)


def nm_mask(scores: Tensor, n: int, m: int, norm: Tensor | None = None) -> Tensor:
    """Return True at the m - n smallest scores of every m consecutive columns: bool ``[R, C]``."""
    groups = scores_of(scores, norm).reshape(-1, m)
    return select_mask(groups, m - n).view(scores.shape)


def nm_apply(weight: Tensor, n: int, m: int, norm: Tensor | None, out: Tensor) -> None:
    """Write the weight into ``out``, without the m - n smallest ``|weight| * norm`` of every m consecutive columns."""
    mask = nm_mask(weight.abs(), n, m, norm)
    out.copy_(weight).masked_fill_(mask, 0)


def quantile_codes(scores: Tensor, norm: Tensor | None = None) -> Tensor:
    """Return ``floor(256 r / C)`` for the ascending rank r of each score in its row: uint8 ``[R, C]``."""
    order = scores_of(scores, norm).argsort(dim=1, stable=True)
    columns = scores.shape[1]
    codes = (torch.arange(columns, device=scores.device) * 256 // max(columns, 1)).to(torch.uint8)
    return torch.empty_like(order, dtype=torch.uint8).scatter_(1, order, codes.expand_as(order))


def masked_copy(weight: Tensor, codes: Tensor, level: int, out: Tensor) -> None:
    """Write ``out = weight where codes >= level, else 0``."""
    # A uint8 cannot hold 256.
    out.copy_(weight).masked_fill_(codes.to(torch.int16) < level, 0)


def gather_rows(weight: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``weight`` named by ``index``, contiguous."""
    return weight.index_select(0, index)


def gather_columns(weight: Tensor, index: Tensor) -> Tensor:
    """Return the columns of ``weight`` named by ``index``, contiguous."""
    return weight.index_select(1, index)


def compact_layer(
    weights: Sequence[Tensor], indices: Sequence[Tensor], axes: Sequence[int], offsets: Sequence[int], arena: Tensor
) -> None:
    """Write the kept rows (axis 0) or columns (axis 1) of many tensors into ``arena``, each at its byte offset."""
    for weight, index, axis, begin in zip(weights, indices, axes, offsets, strict=True):
        kept = weight.index_select(axis, index).flatten().view(torch.uint8)
        arena[begin : begin + kept.numel()] = kept
