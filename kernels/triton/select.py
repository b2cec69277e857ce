"""Selection of the k smallest scores of each row, exactly and without a sort.

A float's bits, the sign flipped (all bits, if negative), order as unsigned integers like the floats. The k-th smallest
of these keys is bracketed from the row's extremes, and the bracket is narrowed by counting how many keys lie at or
below a probe, until one key is left or a probe has exactly k keys at or below it. Probes interpolate the count and
halve the bracket by turns: halving bounds their number, interpolation saves a third of them. Ties at the border are
settled by a second search of the same kind, in which a tie's key is its column.

Scores are ``[R, C]``, float32 or 16-bit floats, rows contiguous; with a norm they are ``|x| * norm`` in float32. One
program per row. A row stays in registers up to 16384 columns; most of a longer row is read again for every probe.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 16384
PAST_THE_END = tl.constexpr(0xFFFFFFFF)


@triton.jit
def float_image(b_x, BITS: tl.constexpr):
    """Return the uint32 image of a block of floats in their order; -0.0 and 0.0 share one."""
    SIGN: tl.constexpr = 1 << (BITS - 1)
    FULL: tl.constexpr = (1 << BITS) - 1
    b_bits = b_x.to(tl.uint16, bitcast=True).to(tl.uint32) if BITS == 16 else b_x.to(tl.uint32, bitcast=True)
    b_bits = tl.where(b_bits == SIGN, 0, b_bits)
    return tl.where(b_bits >= SIGN, b_bits ^ FULL, b_bits ^ SIGN)


@triton.jit
def place_keys(b_image, kth, block, BC: tl.constexpr):
    """Return keys that differ for ties with ``kth`` only: 0 below ties, their column from 1 on, the end above."""
    # [BC]
    b_column = (block * BC + tl.arange(0, BC) + 1).to(tl.uint32)
    return tl.where(b_image < kth, 0, tl.where(b_image == kth, b_column, PAST_THE_END))


@triton.jit
def load_keys(p_row, norm, columns, kth, block, PLACES: tl.constexpr, BITS: tl.constexpr, BC: tl.constexpr):
    """Return the keys of one block of a row: images or, for the second search, places."""
    # [BC]
    o_c = block * BC + tl.arange(0, BC)
    m_c = o_c < columns
    b_x = tl.load(p_row + o_c, mask=m_c, other=0.0)
    if norm is not None:
        b_x = tl.abs(b_x.to(tl.float32)) * tl.load(norm + o_c, mask=m_c, other=0.0)
    b_key = tl.where(m_c, float_image(b_x, BITS), PAST_THE_END)
    return place_keys(b_key, kth, block, BC) if PLACES else b_key


@triton.jit
def narrow(
    b_key,
    p_row,
    norm,
    columns,
    kth,
    k,
    low,
    high,
    below,
    up_to,
    PLACES: tl.constexpr,
    BITS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BC: tl.constexpr,
):
    """Narrow a bracket ``low..high`` with ``below`` keys < low and ``up_to`` keys <= high, k among the latter.

    Ends with ``up_to == k``, or with ``low == high``, the k-th key.
    """
    halve = k < 0
    while (low < high) & (up_to != k):
        width = high - low
        share = (k - below).to(tl.float32) / (up_to - below).to(tl.float32)
        step = tl.where(halve, width >> 1, (width.to(tl.float32) * share).to(tl.uint32))
        probe = low + tl.minimum(step, width - 1)
        halve = halve == 0
        b_count = (b_key <= probe).to(tl.int32)
        for block in range(1, BLOCKS):
            b_count += (load_keys(p_row, norm, columns, kth, block, PLACES, BITS, BC) <= probe).to(tl.int32)
        count = tl.sum(b_count, 0)
        if count >= k:
            high = probe
            up_to = count
        else:
            low = probe + 1
            below = count
    return high, below, up_to


@triton.jit
def search(b_image, p_row, norm, columns, k, BITS: tl.constexpr, BLOCKS: tl.constexpr, BC: tl.constexpr):
    """Return ``(high, below, up_to)`` of :func:`narrow` on the images of a row, from its extremes."""
    zero = tl.full((), 0, tl.uint32)
    low = tl.min(b_image, 0)
    high = tl.max(tl.where(b_image == PAST_THE_END, 0, b_image), 0)
    for block in range(1, BLOCKS):
        b_more = load_keys(p_row, norm, columns, zero, block, False, BITS, BC)
        low = tl.minimum(low, tl.min(b_more, 0))
        high = tl.maximum(high, tl.max(tl.where(b_more == PAST_THE_END, 0, b_more), 0))
    return narrow(b_image, p_row, norm, columns, zero, k, low, high, k * 0, k * 0 + columns, False, BITS, BLOCKS, BC)


@triton.jit(do_not_specialize=["k"])
def kth_value_kernel(
    scores, norm, kth_values, columns, stride_r, k, BITS: tl.constexpr, BLOCKS: tl.constexpr, BC: tl.constexpr
):
    SIGN: tl.constexpr = 1 << (BITS - 1)
    FULL: tl.constexpr = (1 << BITS) - 1
    row = tl.program_id(0).to(tl.int64)
    p_row = scores + row * stride_r
    zero = tl.full((), 0, tl.uint32)
    b_image = load_keys(p_row, norm, columns, zero, 0, False, BITS, BC)
    high, _, _ = search(b_image, p_row, norm, columns, k, BITS, BLOCKS, BC)
    # A probe that has k images at or below it need not be one itself.
    kth = tl.max(tl.where(b_image <= high, b_image, 0), 0)
    for block in range(1, BLOCKS):
        b_more = load_keys(p_row, norm, columns, zero, block, False, BITS, BC)
        kth = tl.maximum(kth, tl.max(tl.where(b_more <= high, b_more, 0), 0))
    bits = tl.where(kth >= SIGN, kth ^ SIGN, kth ^ FULL)
    if BITS == 16:
        value = bits.to(tl.uint16).to(scores.dtype.element_ty, bitcast=True).to(tl.float32)
    else:
        value = bits.to(tl.float32, bitcast=True)
    tl.store(kth_values + row, value)


@triton.jit
def store_mask(p_row, m_selected, columns, block, PACKED: tl.constexpr, BC: tl.constexpr):
    """Write one block of a row of the mask: a byte per column, or a bit."""
    if PACKED:
        # [BC / 8, 8]
        b_bits = tl.reshape(m_selected.to(tl.int32), (BC // 8, 8)) << tl.arange(0, 8)[None, :]
        o_byte = block * (BC // 8) + tl.arange(0, BC // 8)
        tl.store(p_row + o_byte, tl.sum(b_bits, 1).to(tl.uint8), mask=o_byte < tl.cdiv(columns, 8))
    else:
        o_c = block * BC + tl.arange(0, BC)
        tl.store(p_row + o_c, m_selected.to(tl.uint8), mask=o_c < columns)


@triton.jit(do_not_specialize=["k"])
def select_mask_kernel(
    scores,
    norm,
    selected,
    columns,
    stride_r,
    stride_s,
    k,
    BITS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BC: tl.constexpr,
    PACKED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    p_row = scores + row * stride_r
    p_selected = selected + row * stride_s
    zero = tl.full((), 0, tl.uint32)
    b_image = load_keys(p_row, norm, columns, zero, 0, False, BITS, BC)
    kth, below, up_to = search(b_image, p_row, norm, columns, k, BITS, BLOCKS, BC)

    b_place = place_keys(b_image, kth, 0, BC)
    first, last = zero + 1, zero + columns
    end, _, _ = narrow(b_place, p_row, norm, columns, kth, k, first, last, below, up_to, True, BITS, BLOCKS, BC)
    store_mask(p_selected, b_place <= end, columns, 0, PACKED, BC)
    for block in range(1, BLOCKS):
        b_place = load_keys(p_row, norm, columns, kth, block, True, BITS, BC)
        store_mask(p_selected, b_place <= end, columns, block, PACKED, BC)


def launch_options(scores: Tensor, norm: Tensor | None) -> dict[str, int]:
    """Return the bits to select on, the blocks per row and their size.

    With 32 scores per thread two programs fit on an SM, with more they do not.
    """
    columns = scores.shape[1]
    block = triton.next_power_of_2(max(columns, 256))
    fits = block <= MAX_BLOCK
    block = block if fits else MAX_BLOCK // 2
    return {
        "BITS": 8 * scores.element_size() if norm is None else 32,
        "BLOCKS": triton.cdiv(columns, block),
        "BC": block,
        "num_warps": max(block // 1024, 1) if fits else 16,
    }


def kth_value(scores: Tensor, k: int, norm: Tensor | None = None) -> Tensor:
    """Return the k-th smallest score of each row: float32 ``[R]``; a zero comes back as 0.0, never -0.0.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``, without NaN.
        k: rank, counted from 1, at most ``C``.
        norm: None, or float32 ``[C]``, non-negative: the scores are ``|scores| * norm``.
    """
    rows, columns = scores.shape
    values = torch.empty(rows, dtype=torch.float32, device=scores.device)
    if rows > 0:
        norm = None if norm is None else norm.contiguous()
        with torch.cuda.device_of(scores):
            kth_value_kernel[(rows,)](
                scores, norm, values, columns, scores.stride(0), k, **launch_options(scores, norm)
            )
    return values


def select_mask(scores: Tensor, k: int, norm: Tensor | None = None, bits: bool = False) -> Tensor:
    """Return True at exactly the k smallest scores of each row; of equal scores those with the lowest index.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``, without NaN.
        k: number of scores to select per row, ``0 <= k <= C``.
        norm: None, or float32 ``[C]``, non-negative: the scores are ``|scores| * norm``.
        bits: pack the bool ``[R, C]`` into uint8 ``[R, ceil(C / 8)]``, the first column in the lowest bit.
    """
    rows, columns = scores.shape
    width, dtype = ((columns + 7) // 8, torch.uint8) if bits else (columns, torch.bool)
    selected = torch.empty(rows, width, dtype=dtype, device=scores.device)
    if k == 0:
        return selected.zero_()
    if selected.numel() > 0:
        norm = None if norm is None else norm.contiguous()
        with torch.cuda.device_of(scores):
            select_mask_kernel[(rows,)](
                scores,
                norm,
                selected.view(torch.uint8),
                columns,
                scores.stride(0),
                width,
                k,
                PACKED=bits,
                **launch_options(scores, norm),
            )
    return selected
