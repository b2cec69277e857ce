"""The k smallest scores of each row, exactly and without a sort.

A float's bits, the sign flipped (all bits, if negative), order as unsigned integers like the floats. Radix select
(Knuth, TAOCP vol. 3, 5.2.5) fixes 8 bits of the k-th smallest image a pass: count the next digit among the scores
that match so far, take the digit where the running count reaches the rank, subtract the count below it. What is left
of the rank after the last pass says how many of the ties at the border belong to the selection.

Scores are ``[R, C]``, float32 (4 passes) or 16-bit floats (2 passes), rows contiguous. One program a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 1024


@triton.jit
def float_image(b_x, BITS: tl.constexpr):
    """uint32 image of a block of floats in their order; -0.0 and 0.0 share one."""
    SIGN: tl.constexpr = 1 << (BITS - 1)
    FULL: tl.constexpr = (1 << BITS) - 1
    b_bits = b_x.to(tl.uint16, bitcast=True).to(tl.uint32) if BITS == 16 else b_x.to(tl.uint32, bitcast=True)
    b_bits = tl.where(b_bits == SIGN, 0, b_bits)
    return tl.where(b_bits >= SIGN, b_bits ^ FULL, b_bits ^ SIGN)


@triton.jit
def radix_select(p_row, columns, k, BITS: tl.constexpr, BLOCKS: tl.constexpr, BC: tl.constexpr):
    """The image of the k-th smallest score of a row, and its rank (from 1) among the scores equal to it."""
    # [256]
    o_digit = tl.arange(0, 256)
    kth = tl.full((), 0, tl.uint32)
    rank = k
    for done in tl.static_range(0, BITS, 8):
        b_count = tl.zeros((256,), tl.int32)
        for block in range(BLOCKS):
            # [BC]
            o_c = block * BC + tl.arange(0, BC)
            m_c = o_c < columns
            b_image = float_image(tl.load(p_row + o_c, mask=m_c, other=0.0), BITS) >> (BITS - 8 - done)
            if done > 0:
                m_c &= (b_image >> 8) == kth
            b_count += tl.histogram((b_image & 255).to(tl.int32), 256, mask=m_c)
        digit = tl.sum((tl.cumsum(b_count, 0) < rank).to(tl.int32), 0)
        rank -= tl.sum(tl.where(o_digit < digit, b_count, 0), 0)
        kth = (kth << 8) | digit.to(tl.uint32)
    return kth, rank


@triton.jit
def kth_value_kernel(
    scores, kth_values, columns, stride_r, k, BITS: tl.constexpr, BLOCKS: tl.constexpr, BC: tl.constexpr
):
    SIGN: tl.constexpr = 1 << (BITS - 1)
    FULL: tl.constexpr = (1 << BITS) - 1
    row = tl.program_id(0).to(tl.int64)
    kth, _ = radix_select(scores + row * stride_r, columns, k, BITS, BLOCKS, BC)
    bits = tl.where(kth >= SIGN, kth ^ SIGN, kth ^ FULL)
    if BITS == 16:
        bits = bits.to(tl.uint16)
    tl.store(kth_values + row, bits.to(scores.dtype.element_ty, bitcast=True).to(tl.float32))


@triton.jit
def select_mask_kernel(
    scores, selected, columns, stride_r, k, BITS: tl.constexpr, BLOCKS: tl.constexpr, BC: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    p_row = scores + row * stride_r
    kth, quota = radix_select(p_row, columns, k, BITS, BLOCKS, BC)
    ties = tl.full((), 0, tl.int32)
    for block in range(BLOCKS):
        # [BC]
        o_c = block * BC + tl.arange(0, BC)
        m_c = o_c < columns
        b_image = float_image(tl.load(p_row + o_c, mask=m_c, other=0.0), BITS)
        # Columns past the end come last, so their ties crowd out none.
        b_tie = (b_image == kth).to(tl.int32)
        m_selected = (b_image < kth) | ((b_tie > 0) & (ties + tl.cumsum(b_tie, 0) <= quota))
        tl.store(selected + row * columns + o_c, m_selected.to(tl.uint8), mask=m_c)
        ties += tl.sum(b_tie, 0)


def launch_options(scores: Tensor) -> dict[str, int]:
    """Bits to select on, blocks a row, their size, and warps for 8 scores a thread (more of them spill registers)."""
    columns = scores.shape[1]
    block = min(triton.next_power_of_2(max(columns, 256)), MAX_BLOCK)
    blocks = triton.cdiv(columns, block)
    return {"BITS": 8 * scores.element_size(), "BLOCKS": blocks, "BC": block, "num_warps": block // 256}


def kth_value(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest value of each row: float32 ``[R]``; a zero comes back as 0.0, never -0.0.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``, without NaN.
        k: rank, counted from 1, at most ``C``.
    """
    rows, columns = scores.shape
    values = torch.empty(rows, dtype=torch.float32, device=scores.device)
    if rows > 0:
        with torch.cuda.device_of(scores):
            kth_value_kernel[(rows,)](scores, values, columns, scores.stride(0), k, **launch_options(scores))
    return values


def select_mask(scores: Tensor, k: int) -> Tensor:
    """True at exactly the k smallest scores of each row, of equal ones those with the lowest index: bool ``[R, C]``.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``, without NaN.
        k: how many a row, ``0 <= k <= C``.
    """
    rows, columns = scores.shape
    if rows == 0 or k in (0, columns):
        return torch.full((rows, columns), k > 0, dtype=torch.bool, device=scores.device)
    selected = torch.empty(rows, columns, dtype=torch.bool, device=scores.device)
    with torch.cuda.device_of(scores):
        select_mask_kernel[(rows,)](
            scores, selected.view(torch.uint8), columns, scores.stride(0), k, **launch_options(scores)
        )
    return selected
