"""Moments, counts above thresholds and a histogram of a weight's scores, in one read.

    s[r, c] = |W[r, c]|^power * norm[c]^norm_power
    moments = count, sum s, s^2, s^3, s^4, min, max, count of s > 0, and over those sum ln s, (ln s)^2, s ln s, s^2 ln s
    above[k] = count of s > thresholds[k]        histogram[b] = count of scores in bin b

``W`` is ``[R, C]``, ``norm`` float32 ``[C]``. A bin is the upper 14 bits of a float32, counted from 2^-44 and clamped.
A program walks down one stripe of rows in one block of columns, few enough scores that float32 sums and counts hold;
its partials are summed in float64. A program counts a window of the histogram in registers; scores beside the window go
straight to memory. Integers add up to the same in any order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BINS = tl.constexpr(2048)
SHIFT = tl.constexpr(18)
FIRST = tl.constexpr((127 - 44) << 5)

# Octaves of |W| in the window; what lies that far below the largest is rare in a trained weight.
OCTAVES = 8


@triton.jit
def scores_of(p_w, m_w, b_factor, power, FORM: tl.constexpr):
    """Return the scores of a block, zero outside of the mask; FORM 1 and 2 are those powers, 0 any power > 0."""
    b_s = tl.abs(tl.load(p_w, mask=m_w, other=0.0).to(tl.float32))
    if FORM == 2:
        b_s *= b_s
    elif FORM == 0:
        # libdevice's pow does not run interpreted. Zero needs no case: log2(0) = -inf, exp2(-inf) = 0.
        b_s = tl.exp2(power * tl.log2(b_s))
    return b_s if b_factor is None else b_s * b_factor


@triton.jit
def bins_of(b_s):
    b_bin = (b_s.to(tl.int32, bitcast=True) >> SHIFT) - FIRST
    return tl.minimum(tl.maximum(b_bin, 0), BINS - 1)


@triton.jit
def block_moments_kernel(
    weight,
    factor,
    thresholds,
    partials,
    histogram,
    rows,
    columns,
    stride_r,
    power,
    K: tl.constexpr,
    FORM: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIPE: tl.constexpr,
    VEC: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(columns, BC)
    pid = tl.program_id(0)
    row = (pid // blocks).to(tl.int64) * STRIPE
    # [BC]
    o_c = pid % blocks * BC + tl.arange(0, BC)
    m_c = o_c < columns
    p_w = weight + o_c
    b_factor = None if factor is None else tl.load(factor + o_c, mask=m_c, other=0.0)

    # The window ends half an octave above the first row's largest score. Zeros would all meet in one bin of memory.
    top = tl.max(bins_of(scores_of(p_w + row * stride_r, m_c, b_factor, power, FORM))) + 16
    low = tl.maximum(tl.minimum(top, BINS - 1) + 1 - WINDOW, 0)
    b_window = tl.zeros((WINDOW,), tl.int32)

    # [BC // VEC]
    zero = tl.zeros((BC // VEC,), tl.float32)
    sum1, sum2, sum3, sum4, positive, lowest = zero, zero, zero, zero, zero, zero
    log, log2, slog, s2log = zero, zero, zero, zero
    smallest, largest = zero + float("inf"), zero
    above = ()
    for _ in tl.static_range(K):
        above += (zero,)

    for i in range(STRIPE):
        m_w = m_c & (row + i < rows)
        b_s = scores_of(p_w + (row + i) * stride_r, m_w, b_factor, power, FORM)
        b_bin = bins_of(b_s)
        m_window = (b_bin > 0) & (b_bin >= low) & (b_bin < low + WINDOW)
        b_window += tl.histogram(tl.where(m_window, b_bin - low, 0), WINDOW, mask=m_window)
        tl.atomic_add(histogram + b_bin, tl.full((BC,), 1, tl.int64), mask=(b_bin > 0) & ~m_window, sem="relaxed")

        # [BC // VEC, VEC]: neighbours lie in one lane, so the loop sums without a shuffle.
        b_s = tl.reshape(b_s, (BC // VEC, VEC))
        m_w = tl.reshape(m_w, (BC // VEC, VEC))
        b_s2 = b_s * b_s
        m_positive = b_s > 0
        b_log = tl.log2(tl.where(m_positive, b_s, 1.0))
        sum1 += tl.sum(b_s, 1)
        sum2 += tl.sum(b_s2, 1)
        sum3 += tl.sum(b_s2 * b_s, 1)
        sum4 += tl.sum(b_s2 * b_s2, 1)
        smallest = tl.minimum(smallest, tl.min(tl.where(m_w, b_s, float("inf")), 1))
        largest = tl.maximum(largest, tl.max(b_s, 1))
        positive += tl.sum(m_positive.to(tl.float32), 1)
        log += tl.sum(b_log, 1)
        log2 += tl.sum(b_log * b_log, 1)
        slog += tl.sum(b_s * b_log, 1)
        s2log += tl.sum(b_s2 * b_log, 1)

        counts = ()
        for k in tl.static_range(K):
            m_above = m_w & (b_s > tl.load(thresholds + k))
            counts += (above[k] + tl.sum(m_above.to(tl.float32), 1),)
        above = counts
        lowest += tl.sum((m_w & (tl.reshape(b_bin, (BC // VEC, VEC)) == 0)).to(tl.float32), 1)

    o_bin = low + tl.arange(0, WINDOW)
    tl.atomic_add(histogram + o_bin, b_window.to(tl.int64), mask=b_window > 0, sem="relaxed")
    tl.atomic_add(histogram, tl.sum(lowest).to(tl.int64), sem="relaxed")
    partials += pid
    tl.store(partials, tl.min(smallest))
    tl.store(partials + tl.num_programs(0), tl.max(largest))
    sums = (sum1, sum2, sum3, sum4, positive, log, log2, slog, s2log)
    for k in tl.static_range(9):
        tl.store(partials + (2 + k) * tl.num_programs(0), tl.sum(sums[k]))
    for k in tl.static_range(K):
        tl.store(partials + (11 + k) * tl.num_programs(0), tl.sum(above[k]))


def block_moments(
    weight: Tensor, norm: Tensor | None, power: float, norm_power: float, thresholds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(moments, above, histogram)``: float64 ``[12]``, int64 ``[K]`` and int64 ``[2048]``.

    The third and fourth powers of a score, rounded to float32, must not overflow.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``.
        norm: non-negative float32 ``[C]``, or None for 1.
        power: exponent of the magnitude, > 0.
        norm_power: exponent of the norm, > 0.
        thresholds: float32 ``[K]``.
    """
    (rows, columns), count = weight.shape, thresholds.shape[0]
    histogram = torch.zeros(BINS.value, dtype=torch.int64, device=weight.device)
    if weight.numel() == 0:
        moments = weight.new_zeros(12, dtype=torch.float64)
        moments[5], moments[6] = math.inf, -math.inf
        return moments, histogram.new_zeros(count), histogram
    # Loads of 16 bytes, eight scores of a row a lane of the one warp.
    vector = 16 // weight.element_size()
    block = min(triton.next_power_of_2(max(columns, vector)), 256)
    blocks = triton.cdiv(columns, block)
    # About 4096 programs of one warp fill a GPU; a longer stripe merges fewer windows.
    stripe = min(max(triton.next_power_of_2(rows * blocks // 4096), 32), 64)
    programs = blocks * triton.cdiv(rows, stripe)
    partials = torch.empty(11 + count, programs, dtype=torch.float32, device=weight.device)
    with torch.cuda.device_of(weight):
        block_moments_kernel[(programs,)](
            weight,
            None if norm is None else norm.pow(norm_power).contiguous(),
            thresholds.contiguous(),
            partials,
            histogram,
            rows,
            columns,
            weight.stride(0),
            float(power),
            K=count,
            # A square and the magnitude itself need no logarithm.
            FORM=int(power) if power in (1, 2) else 0,
            # 32 bins an octave, and a power stretches octaves.
            WINDOW=min(triton.next_power_of_2(32 * OCTAVES * math.ceil(power)), BINS.value),
            STRIPE=stripe,
            VEC=vector,
            BC=block,
            num_warps=1,
        )
    extremes = torch.stack([partials[0].amin(), partials[1].amax()]).double()
    sums = partials[2:].double().sum(1)
    # The kernel's logarithms are those to base 2.
    logs = sums[5:9] * sums.new_tensor([math.log(2), math.log(2) ** 2, math.log(2), math.log(2)])
    moments = torch.cat([sums.new_tensor([weight.numel()]), sums[:4], extremes, sums[4:5], logs])
    return moments, sums[9:].long(), histogram
