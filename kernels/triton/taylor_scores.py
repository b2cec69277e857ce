"""Row and column sums of weight times gradient in three forms, in one read of both.

    p = W * G        form 0: p        form 1: |p|        form 2: p^2
    rows[f, r] = sum_c form_f(p[r, c])        columns[f, c] = sum_r form_f(p[r, c])

``W`` and ``G`` are ``[R, C]``; the sums are float32 ``[3, R]`` and ``[3, C]``. Forms 0 and 1 are the first-order
Taylor scores (Molchanov et al. 2019, eq. 8; LLM-Pruner, Ma et al. 2023, eq. 3), form 2 is the diagonal Fisher term of
one sample; form 1 can be computed alone. A program walks down one stripe of rows in one block of columns; partials are
summed in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_R = 4


@triton.jit
def taylor_scores_kernel(
    weight,
    gradient,
    row_sums,
    column_sums,
    rows,
    columns,
    stride_w,
    stride_g,
    FORMS: tl.constexpr,
    STRIPE: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    # The absolute sums come first of one form, second of three.
    MIDDLE: tl.constexpr = FORMS // 2
    blocks = tl.cdiv(columns, BC)
    pid = tl.program_id(0)
    block = pid % blocks
    stripe = (pid // blocks).to(tl.int64)
    # [BC]
    o_c = block * BC + tl.arange(0, BC)
    m_c = o_c < columns

    b_signed = tl.zeros((BC,), tl.float32)
    b_absolute = tl.zeros((BC,), tl.float32)
    b_squared = tl.zeros((BC,), tl.float32)
    for start in range(0, STRIPE, BR):
        o_r = stripe * STRIPE + start + tl.arange(0, BR)
        m_r = o_r < rows
        m_w = m_r[:, None] & m_c[None, :]
        b_w = tl.load(weight + o_r[:, None] * stride_w + o_c[None, :], mask=m_w, other=0.0).to(tl.float32)
        b_g = tl.load(gradient + o_r[:, None] * stride_g + o_c[None, :], mask=m_w, other=0.0).to(tl.float32)
        b_p = b_w * b_g
        b_absolute += tl.sum(tl.abs(b_p), 0)
        p_rows = row_sums + block.to(tl.int64) * FORMS * rows + o_r
        tl.store(p_rows + MIDDLE * rows, tl.sum(tl.abs(b_p), 1), mask=m_r)
        if FORMS == 3:
            b_signed += tl.sum(b_p, 0)
            b_squared += tl.sum(b_p * b_p, 0)
            tl.store(p_rows, tl.sum(b_p, 1), mask=m_r)
            tl.store(p_rows + 2 * rows, tl.sum(b_p * b_p, 1), mask=m_r)

    p_columns = column_sums + stripe * FORMS * columns + o_c
    tl.store(p_columns + MIDDLE * columns, b_absolute, mask=m_c)
    if FORMS == 3:
        tl.store(p_columns, b_signed, mask=m_c)
        tl.store(p_columns + 2 * columns, b_squared, mask=m_c)


def taylor_scores(weight: Tensor, gradient: Tensor, absolute_only: bool = False) -> tuple[Tensor, Tensor]:
    """Return ``(rows, columns)``: float32 ``[3, R]`` and ``[3, C]``, signed, absolute and squared sums of ``W * G``.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``.
        gradient: ``[R, C]``, float32 or the weight's dtype, ``stride(1) == 1``.
        absolute_only: return the absolute sums alone, ``[1, R]`` and ``[1, C]``.
    """
    forms, (rows, columns) = 1 if absolute_only else 3, weight.shape
    if weight.numel() == 0:
        return tuple(weight.new_zeros(forms, size, dtype=torch.float32) for size in weight.shape)
    # One warp spans a row of the block with 16-byte loads, so row sums never leave their warp.
    block_c = 32 * 16 // min(weight.element_size(), gradient.element_size())
    blocks = triton.cdiv(columns, block_c)
    # About 4096 programs of one warp fill a GPU; a longer stripe writes fewer column partials.
    stripe = min(max(triton.next_power_of_2(rows * blocks // 4096), 32), 256)
    stripes = triton.cdiv(rows, stripe)
    row_sums = torch.empty(blocks, forms, rows, dtype=torch.float32, device=weight.device)
    column_sums = torch.empty(stripes, forms, columns, dtype=torch.float32, device=weight.device)
    with torch.cuda.device_of(weight):
        taylor_scores_kernel[(blocks * stripes,)](
            weight,
            gradient,
            row_sums,
            column_sums,
            rows,
            columns,
            weight.stride(0),
            gradient.stride(0),
            FORMS=forms,
            STRIPE=stripe,
            BR=BLOCK_R,
            BC=block_c,
            num_warps=1,
        )
    return row_sums.sum(0), column_sums.sum(0)
