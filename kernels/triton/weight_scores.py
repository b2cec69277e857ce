"""Row and column sums of a weight's scores in one read, nothing of the weight's size materialised.

    score[r, c] = |W[r, c]|^power * norm[c]^norm_power
    rows[r] = sum_c score[r, c]        columns[c] = sum_r score[r, c]

``W`` is ``[R, C]``, ``norm`` float32 ``[C]``; the sums are float32. ``power = norm_power = 1`` is Wanda's score
``|W| * ||X||_2`` (Sun et al. 2024, eq. 1); without ``norm`` it is the magnitude to a power. A program walks down one
stripe of rows in one block of columns; both axes leave partials, which are summed in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_R = 4


@triton.jit
def raised(b_x, power, FORM: tl.constexpr):
    """``b_x ^ power`` of a non-negative float32 block; FORM 1 and 2 are those powers, 0 any power > 0."""
    if FORM == 1:
        return b_x
    elif FORM == 2:
        return b_x * b_x
    else:
        # libdevice's pow does not run interpreted. Zero needs no case: log2(0) = -inf, exp2(-inf) = 0.
        return tl.exp2(power * tl.log2(b_x))


@triton.jit
def weight_scores_kernel(
    weight,
    norm,
    row_sums,
    column_sums,
    rows,
    columns,
    stride_r,
    power,
    norm_power,
    FORM: tl.constexpr,
    NORM_FORM: tl.constexpr,
    STRIPE: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(columns, BC)
    pid = tl.program_id(0)
    block = pid % blocks
    stripe = (pid // blocks).to(tl.int64)
    # [BC]
    o_c = block * BC + tl.arange(0, BC)
    m_c = o_c < columns
    if norm is not None:
        b_norm = raised(tl.load(norm + o_c, mask=m_c, other=0.0).to(tl.float32), norm_power, NORM_FORM)[None, :]

    b_columns = tl.zeros((BC,), tl.float32)
    for start in range(0, STRIPE, BR):
        o_r = stripe * STRIPE + start + tl.arange(0, BR)
        m_r = o_r < rows
        p_w = weight + o_r[:, None] * stride_r + o_c[None, :]
        b_w = tl.load(p_w, mask=m_r[:, None] & m_c[None, :], other=0.0).to(tl.float32)
        b_score = raised(tl.abs(b_w), power, FORM)
        if norm is not None:
            b_score *= b_norm
        b_columns += tl.sum(b_score, 0)
        tl.store(row_sums + block.to(tl.int64) * rows + o_r, tl.sum(b_score, 1), mask=m_r)

    tl.store(column_sums + stripe * columns + o_c, b_columns, mask=m_c)


def form_of(power: float) -> int:
    """The kernel's FORM of an exponent: 1 and 2 need no logarithm."""
    return int(power) if power in (1, 2) else 0


def weight_scores(
    weight: Tensor, norm: Tensor | None = None, power: float = 1.0, norm_power: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``(rows, columns)``: float32 ``[R]`` and ``[C]``, the sums of ``|W|^power * norm^norm_power`` over each axis.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``.
        norm: non-negative float32 ``[C]``, or None for 1.
        power: exponent of the magnitude, > 0.
        norm_power: exponent of the norm, > 0.
    """
    rows, columns = weight.shape
    if weight.numel() == 0:
        return weight.new_zeros(rows, dtype=torch.float32), weight.new_zeros(columns, dtype=torch.float32)
    # One warp spans a row of the block with one 16-byte load a lane, so row sums never leave their warp.
    block_c = 32 * 16 // weight.element_size()
    blocks = triton.cdiv(columns, block_c)
    # About 4096 programs of one warp fill a GPU; a longer stripe writes fewer column partials.
    stripe = min(max(triton.next_power_of_2(rows * blocks // 4096), 32), 256)
    stripes = triton.cdiv(rows, stripe)
    row_sums = torch.empty(blocks, rows, dtype=torch.float32, device=weight.device)
    column_sums = torch.empty(stripes, columns, dtype=torch.float32, device=weight.device)
    with torch.cuda.device_of(weight):
        weight_scores_kernel[(blocks * stripes,)](
            weight,
            None if norm is None else norm.contiguous(),
            row_sums,
            column_sums,
            rows,
            columns,
            weight.stride(0),
            float(power),
            float(norm_power),
            FORM=form_of(power),
            NORM_FORM=form_of(norm_power),
            STRIPE=stripe,
            BR=BLOCK_R,
            BC=block_c,
            num_warps=1,
        )
    return row_sums.sum(0), column_sums.sum(0)
