"""n:m sparsity: the m - n smallest scores of every m consecutive columns, as a mask or removed from the weight.

    score[r, c] = x[r, c], or |x[r, c]| * norm[c]        dropped[r, c] = rank of the score in its group < m - n

A rank counts the scores of the group that are smaller, or equal and further left: m comparisons per score, no sort.
Scores are ``[R, C]``, float32 or 16-bit floats, rows contiguous; ``m`` is at most 32 and divides ``C``. One read and
one write.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def keys_of(b_x, b_norm, ABSOLUTE: tl.constexpr):
    """Return int32 keys that order like the scores; -0.0 and 0.0 share one."""
    b_score = b_x.to(tl.float32)
    if ABSOLUTE:
        b_score = tl.abs(b_score)
    if b_norm is not None:
        b_score *= b_norm
    # Minus zero plus zero is zero.
    b_bits = (b_score + 0.0).to(tl.int32, bitcast=True)
    return b_bits if ABSOLUTE else b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)


@triton.jit
def nm_kernel(
    scores,
    norm,
    out,
    rows,
    columns,
    stride_r,
    DROPPED: tl.constexpr,
    M: tl.constexpr,
    MP: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    APPLY: tl.constexpr,
    STRIPE: tl.constexpr,
    BG: tl.constexpr,
):
    blocks = tl.cdiv(columns, BG * M)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    stripe = (tl.program_id(0) // blocks).to(tl.int64)
    # [1, MP]
    o_m = tl.arange(0, MP)[None, :]
    if M == MP:
        # [BG * M]: groups that fill their lanes are loaded as a line, 16 bytes a thread, and folded afterwards.
        o_c = block * (BG * M) + tl.arange(0, BG * M)
        m_c = o_c < columns
    else:
        # [BG, MP]
        o_c = block * (BG * M) + tl.arange(0, BG)[:, None] * M + o_m
        m_c = (o_c < columns) & (o_m < M)
    b_norm = None
    if norm is not None:
        b_norm = tl.load(norm + o_c, mask=m_c, other=0.0)

    for r in range(STRIPE):
        row = stripe * STRIPE + r
        m_x = m_c & (row < rows)
        b_x = tl.load(scores + row * stride_r + o_c, mask=m_x, other=0.0)
        b_key = keys_of(b_x, b_norm, ABSOLUTE)
        if M == MP:
            b_key = tl.reshape(b_key, (BG, MP))
        b_rank = tl.zeros((BG, MP), tl.int32)
        for j in tl.static_range(M):
            # [BG, 1]
            b_other = tl.sum(tl.where(o_m == j, b_key, 0), 1, keep_dims=True)
            b_rank += tl.where(o_m > j, b_other <= b_key, b_other < b_key).to(tl.int32)
        m_dropped = b_rank < DROPPED
        if M == MP:
            m_dropped = tl.reshape(m_dropped, (BG * M,))
        b_out = tl.where(m_dropped, 0.0, b_x).to(b_x.dtype) if APPLY else m_dropped.to(tl.uint8)
        tl.store(out + row * columns + o_c, b_out, mask=m_x)


def _launch(scores: Tensor, n: int, m: int, norm: Tensor | None, out: Tensor, apply: bool) -> Tensor:
    if scores.numel() == 0:
        return out
    flat = scores.view(1, -1) if norm is None and scores.is_contiguous() else scores
    rows, columns = flat.shape
    padded = triton.next_power_of_2(m)
    # A pointer and a predicate a lane, where groups leave lanes empty: more of them spill.
    groups = (BLOCK if m == padded else BLOCK // 4) // padded
    # With a norm, the rows of a stripe share its block.
    stripe = 1 if norm is None else min(8, triton.next_power_of_2(rows))
    grid = triton.cdiv(columns, groups * m) * triton.cdiv(rows, stripe)
    with torch.cuda.device_of(scores):
        nm_kernel[(grid,)](
            flat,
            norm if norm is None else norm.contiguous(),
            out if apply else out.view(torch.uint8),
            rows,
            columns,
            flat.stride(0),
            DROPPED=m - n,
            M=m,
            MP=padded,
            ABSOLUTE=apply or norm is not None,
            APPLY=apply,
            STRIPE=stripe,
            BG=groups,
            num_warps=8,
        )
    return out


def nm_mask(scores: Tensor, n: int, m: int, norm: Tensor | None = None) -> Tensor:
    """Return True at the m - n smallest scores of every m consecutive columns: bool ``[R, C]``.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``, without NaN.
        n: number of weights kept per group, ``0 <= n <= m``.
        m: size of a group, at most 32; divides ``C``.
        norm: None, or float32 ``[C]``, non-negative: the scores are ``|scores| * norm``.
    """
    out = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    return _launch(scores, n, m, norm, out, apply=False)


def nm_apply(weight: Tensor, n: int, m: int, norm: Tensor | None, out: Tensor) -> None:
    """Write the weight into ``out``, with the m - n smallest ``|weight| * norm`` of every m consecutive columns zero.

    The other arguments are those of :func:`nm_mask`; ``out`` is contiguous, of the weight's dtype, and may be the
    weight itself.
    """
    _launch(weight, n, m, norm, out, apply=True)
