"""Selection of the k smallest scores of many matrices together, exactly and without a sort.

A float's bits, the sign flipped (all bits, if negative), order as unsigned integers like the floats. Radix select
(Knuth, TAOCP vol. 3, 5.2.5) fixes 8 bits of the k-th smallest image per pass: count the next digit among the scores
that match so far, take the digit where the running count reaches the rank, subtract the count below it. The rest of
the rank after the last pass is the number of ties at the border that belong to the selection. The last pass also stores
the digit counts of every program, hence its ties, so that marking knows the number of ties before it.

Matrices are ``[R_i, C_i]``, float32 (4 passes) or 16-bit floats (2 passes), rows contiguous; with norms the scores are
``|x| * norm`` in float32. Counts are integers, so the result does not depend on the order of the programs, and 64 bits
wide. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from .select import float_image

BLOCK = 2048
# Blocks per program: enough to make its 256 counts cheap, where that leaves enough programs.
MAX_SPAN, MIN_PROGRAMS = 16, 1024


@triton.jit
def load_images(scores, norm, rows, columns, stride_r, unit, BITS: tl.constexpr, BC: tl.constexpr):
    """Return the images of a unit (one block of one row), the mask of those that exist, their row and columns."""
    blocks = tl.cdiv(columns, BC)
    row = unit // blocks
    # [BC]
    o_c = (unit % blocks) * BC + tl.arange(0, BC)
    m_c = (o_c < columns) & (row < rows)
    b_x = tl.load(scores + row * stride_r + o_c, mask=m_c, other=0.0)
    if norm is not None:
        b_x = tl.abs(b_x.to(tl.float32)) * tl.load(norm + o_c, mask=m_c, other=0.0)
    return float_image(b_x, BITS), m_c, row, o_c


@triton.jit(do_not_specialize=["first"])
def count_digits_kernel(
    scores,
    norm,
    state,
    counts,
    own_counts,
    first,
    rows,
    columns,
    stride_r,
    BITS: tl.constexpr,
    DONE: tl.constexpr,
    SPAN: tl.constexpr,
    BC: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    prefix = tl.load(state).to(tl.uint32)
    # [256]
    o_digit = tl.arange(0, 256)
    b_count = tl.zeros((256,), tl.int32)
    for i in range(SPAN):
        b_image, m_c, _, _ = load_images(scores, norm, rows, columns, stride_r, pid * SPAN + i, BITS, BC)
        b_image = b_image >> (BITS - 8 - DONE)
        if DONE > 0:
            m_c &= (b_image >> 8) == prefix
        b_count += tl.histogram((b_image & 255).to(tl.int32), 256, mask=m_c)
    tl.atomic_add(counts + o_digit, b_count.to(tl.int64), mask=b_count > 0, sem="relaxed")
    if own_counts is not None:
        tl.store(own_counts + (first + pid) * 256 + o_digit, b_count)


@triton.jit
def take_digit_kernel(state, counts):
    """Append the next digit to the prefix, ``state[0]``; subtract the count below it from the rank, ``state[1]``."""
    # [256]
    o_digit = tl.arange(0, 256)
    b_count = tl.load(counts + o_digit)
    prefix = tl.load(state)
    rank = tl.load(state + 1)
    digit = tl.sum((tl.cumsum(b_count, 0) < rank).to(tl.int64), 0)
    tl.store(state, prefix * 256 + digit)
    tl.store(state + 1, rank - tl.sum(tl.where(o_digit < digit, b_count, 0), 0))
    tl.store(counts + o_digit, tl.zeros((256,), tl.int64))


@triton.jit(do_not_specialize=["first"])
def mark_kernel(
    scores,
    norm,
    state,
    ties_before,
    own_ties,
    selected,
    first,
    rows,
    columns,
    stride_r,
    stride_s,
    BITS: tl.constexpr,
    PACKED: tl.constexpr,
    SPAN: tl.constexpr,
    BC: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    kth = tl.load(state).to(tl.uint32)
    quota = tl.load(state + 1) - tl.load(ties_before + first + pid)
    # Of all programs at most one takes a part of its ties, and only that one has to count them.
    in_part = (quota > 0) & (quota < tl.load(own_ties + first + pid))
    ties = tl.full((), 0, tl.int64)
    for i in range(SPAN):
        b_image, m_c, row, o_c = load_images(scores, norm, rows, columns, stride_r, pid * SPAN + i, BITS, BC)
        m_tie = (b_image == kth) & m_c
        m_taken = m_tie & (quota > 0)
        if in_part:
            m_taken &= ties + tl.cumsum(m_tie.to(tl.int32), 0) <= quota
            ties += tl.sum(m_tie.to(tl.int32), 0)
        m_selected = ((b_image < kth) & m_c) | m_taken
        if PACKED:
            # [BC / 8, 8]
            b_bits = tl.reshape(m_selected.to(tl.int32), (BC // 8, 8)) << tl.arange(0, 8)[None, :]
            o_byte = (pid * SPAN + i) % tl.cdiv(columns, BC) * (BC // 8) + tl.arange(0, BC // 8)
            m_byte = (o_byte < tl.cdiv(columns, 8)) & (row < rows)
            tl.store(selected + row * stride_s + o_byte, tl.sum(b_bits, 1).to(tl.uint8), mask=m_byte)
        else:
            tl.store(selected + row * stride_s + o_c, m_selected.to(tl.uint8), mask=m_c)


class _Pool:
    """The matrices and norms of a call, and their k-th smallest image as it grows digit by digit on the device."""

    def __init__(self, matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None, flatten: bool) -> None:
        self.norms = [None] * len(matrices) if norms is None else [norm.contiguous() for norm in norms]
        # One long row leaves no block half empty.
        flatten = flatten and norms is None
        self.matrices = [m.view(1, -1) if flatten and m.is_contiguous() else m for m in matrices]
        self.bits = 8 * matrices[0].element_size() if norms is None else 32
        device = matrices[0].device
        self.state = torch.zeros(2, dtype=torch.int64, device=device)
        self.state[1].fill_(k)
        self.counts = torch.zeros(256, dtype=torch.int64, device=device)
        units = [m.shape[0] * triton.cdiv(m.shape[1], BLOCK) for m in self.matrices]
        self.spans = [min(triton.next_power_of_2(triton.cdiv(max(u, 1), MIN_PROGRAMS)), MAX_SPAN) for u in units]
        self.programs = [triton.cdiv(u, span) for u, span in zip(units, self.spans, strict=True)]
        self.firsts = [0, *accumulate(self.programs)][:-1]

    def launches(self) -> list[tuple[int, Tensor, Tensor | None, int, int, int]]:
        """Return index, matrix, norm, first program, number of programs and span of every non-empty matrix."""
        indices = range(len(self.matrices))
        parts = zip(indices, self.matrices, self.norms, self.firsts, self.programs, self.spans, strict=True)
        return [part for part in parts if part[1].numel() > 0]

    def select(self, with_ties: bool) -> Tensor | None:
        """Find the k-th image; with ties, return the number of scores equal to it per program: int64 ``[programs]``."""
        own_counts = None
        for done in range(0, self.bits, 8):
            if with_ties and done == self.bits - 8:
                own_counts = torch.empty(sum(self.programs), 256, dtype=torch.int32, device=self.state.device)
            for _, matrix, norm, first, programs, span in self.launches():
                count_digits_kernel[(programs,)](
                    matrix,
                    norm,
                    self.state,
                    self.counts,
                    own_counts,
                    first,
                    *matrix.shape,
                    matrix.stride(0),
                    BITS=self.bits,
                    DONE=done,
                    SPAN=span,
                    BC=BLOCK,
                    num_warps=8,
                )
            take_digit_kernel[(1,)](self.state, self.counts, num_warps=1)
        return None if own_counts is None else own_counts.index_select(1, self.state[:1] & 255)[:, 0].long()


def kth_value_global(matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None = None) -> Tensor:
    """Return the k-th smallest score over all matrices together: float32 ``[1]``; a zero comes back as 0.0, never -0.0.

    Args:
        matrices: ``[R_i, C_i]``, all float32, float16 or bfloat16, ``stride(1) == 1``, without NaN.
        k: rank, counted from 1, at most the number of scores.
        norms: None, or a float32 ``[C_i]`` per matrix, non-negative: the scores are ``|matrix| * norm``.
    """
    with torch.cuda.device_of(matrices[0]):
        pool = _Pool(matrices, k, norms, flatten=True)
        pool.select(with_ties=False)
        image, sign = pool.state[:1], 1 << (pool.bits - 1)
        bits = torch.where(image >= sign, image ^ sign, image ^ (2 * sign - 1))
        if pool.bits == 32:
            return bits.to(torch.int32).view(torch.float32)
        return bits.to(torch.int16).view(matrices[0].dtype).float()


def select_mask_global(
    matrices: Sequence[Tensor], k: int, norms: Sequence[Tensor] | None = None, bits: bool = False
) -> list[Tensor]:
    """Return True at exactly the k smallest scores of all matrices.

    Of equal scores the first in the order of matrices, rows and columns are selected.

    Args:
        matrices: ``[R_i, C_i]``, all float32, float16 or bfloat16, ``stride(1) == 1``, without NaN.
        k: number of scores to select in all, from 0 to the number of scores.
        norms: None, or a float32 ``[C_i]`` per matrix, non-negative: the scores are ``|matrix| * norm``.
        bits: pack each bool ``[R, C]`` into uint8 ``[R, ceil(C / 8)]``, the first column in the lowest bit.
    """
    device = matrices[0].device
    dtype = torch.uint8 if bits else torch.bool
    widths = [(m.shape[1] + 7) // 8 if bits else m.shape[1] for m in matrices]
    masks = [torch.empty(len(m), width, dtype=dtype, device=device) for m, width in zip(matrices, widths, strict=True)]
    with torch.cuda.device_of(matrices[0]):
        # The packed rows of a flattened matrix join only where they fill their bytes.
        pool = _Pool(matrices, k, norms, flatten=not bits or all(m.shape[1] % 8 == 0 for m in matrices))
        own_ties = pool.select(with_ties=True)
        ties_before = own_ties.cumsum(0) - own_ties
        for i, matrix, norm, first, programs, span in pool.launches():
            mark_kernel[(programs,)](
                matrix,
                norm,
                pool.state,
                ties_before,
                own_ties,
                masks[i].view(torch.uint8),
                first,
                *matrix.shape,
                matrix.stride(0),
                masks[i].stride(0),
                BITS=pool.bits,
                PACKED=bits,
                SPAN=span,
                BC=BLOCK,
                num_warps=8,
            )
    return masks
