"""Row and column sums of K scores of a weight in one read, without a temporary of the weight's size.

    score[k, r, c] = |W[r, c]|^powers[k] * norms[k, c]^norm_powers[k]
    rows[k, r] = sum_c score[k, r, c]        columns[k, c] = sum_r score[k, r, c]

``W`` is ``[R, C]``, ``norms`` float32 ``[K, C]``; the sums are float32. Both powers 1 are Wanda's score
``|W| * ||X||_2`` (Sun et al. 2024, eq. 1); without norms it is the magnitude to a power. A program walks down one
stripe of rows in one block of columns; both axes leave partials, which are summed in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_R = 4


@triton.jit
def raised(b_x, power, FORM: tl.constexpr):
    """Return ``b_x ^ power`` of a non-negative float32 block; FORM 1 and 2 are those powers, 0 any power > 0."""
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
    factors,
    row_sums,
    column_sums,
    rows,
    columns,
    stride_r,
    powers,
    FORMS: tl.constexpr,
    STRIPE: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    K: tl.constexpr = len(FORMS)
    blocks = tl.cdiv(columns, BC)
    pid = tl.program_id(0)
    block = pid % blocks
    stripe = (pid // blocks).to(tl.int64)
    # [BC]
    o_c = block * BC + tl.arange(0, BC)
    m_c = o_c < columns

    # K of [BC] each: a tuple, as K is seldom a power of two.
    b_factors, b_columns = (), ()
    for _ in tl.static_range(K):
        b_columns += (tl.zeros((BC,), tl.float32),)
        if factors is not None:
            b_factors += (tl.load(factors + o_c, mask=m_c, other=0.0)[None, :],)
            factors += columns

    for start in range(0, STRIPE, BR):
        o_r = stripe * STRIPE + start + tl.arange(0, BR)
        m_r = o_r < rows
        p_w = weight + o_r[:, None] * stride_r + o_c[None, :]
        b_w = tl.abs(tl.load(p_w, mask=m_r[:, None] & m_c[None, :], other=0.0).to(tl.float32))
        b_sums = ()
        for k in tl.static_range(K):
            b_score = raised(b_w, powers[k], FORMS[k])
            if factors is not None:
                b_score *= b_factors[k]
            b_sums += (b_columns[k] + tl.sum(b_score, 0),)
            tl.store(row_sums + (block.to(tl.int64) * K + k) * rows + o_r, tl.sum(b_score, 1), mask=m_r)
        b_columns = b_sums

    for k in tl.static_range(K):
        tl.store(column_sums + (stripe * K + k) * columns + o_c, b_columns[k], mask=m_c)


def weight_scores(
    weight: Tensor, norms: Tensor | None, powers: Sequence[float], norm_powers: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return ``(rows, columns)``, the sums of ``|W|^power * norm^norm_power``: float32 ``[K, R]`` and ``[K, C]``.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``.
        norms: non-negative float32 ``[K, C]``, or None for 1.
        powers: K exponents of the magnitude, > 0.
        norm_powers: K exponents of the norms, > 0.
    """
    count, (rows, columns) = len(powers), weight.shape
    if weight.numel() == 0 or count == 0:
        return tuple(weight.new_zeros(count, size, dtype=torch.float32) for size in weight.shape)
    if norms is not None and any(power != 1 for power in norm_powers):
        norms = torch.stack([norm.pow(power) for norm, power in zip(norms, norm_powers, strict=True)])
    factors = None if norms is None else norms.contiguous()
    # One warp spans a row of the block with one 16-byte load a lane, so row sums never leave their warp.
    block_c = 32 * 16 // weight.element_size()
    blocks = triton.cdiv(columns, block_c)
    # About 4096 programs of one warp fill a GPU; a longer stripe writes fewer column partials.
    stripe = min(max(triton.next_power_of_2(rows * blocks // 4096), 32), 256)
    stripes = triton.cdiv(rows, stripe)
    # A lane keeps 32 column sums and 32 factors in registers; with more scores than that arithmetic is the limit, not
    # the second read.
    most, sums = 2 * weight.element_size(), []
    for begin in range(0, count, most):
        some = slice(begin, begin + most)
        # A square and the magnitude itself need no logarithm.
        forms = tuple(int(power) if power in (1, 2) else 0 for power in powers[some])
        row_sums = torch.empty(blocks, len(forms), rows, dtype=torch.float32, device=weight.device)
        column_sums = torch.empty(stripes, len(forms), columns, dtype=torch.float32, device=weight.device)
        with torch.cuda.device_of(weight):
            weight_scores_kernel[(blocks * stripes,)](
                weight,
                None if factors is None else factors[some],
                row_sums,
                column_sums,
                rows,
                columns,
                weight.stride(0),
                tuple(float(power) for power in powers[some]),
                FORMS=forms,
                STRIPE=stripe,
                BR=BLOCK_R,
                BC=block_c,
                num_warps=1,
            )
        sums.append((row_sums.sum(0), column_sums.sum(0)))
    return sums[0] if len(sums) == 1 else tuple(torch.cat(parts) for parts in zip(*sums, strict=True))
