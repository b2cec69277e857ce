"""Sum, sum of squares and largest magnitude of activations over tokens, in one read.

    total[n, c]   = sum_t x[n, t, c]
    squares[n, c] = sum_t x[n, t, c]^2
    peak[n, c]    = max_t |x[n, t, c]|

``x`` is ``[N, T, C]`` with any strides; the results are float32 ``[N, C]``. A program reduces one chunk of tokens of
one sample for one block of channels to a partial, and the partials of the chunks are reduced in order. Chunks follow
from ``T`` and ``C`` alone: a sample's statistic never depends on which other samples are there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T = 8
BLOCK_C = 128


@triton.jit
def activation_stats_kernel(
    x,
    total,
    squares,
    peak,
    samples,
    tokens,
    channels,
    stride_n,
    stride_t,
    stride_c,
    CHUNK: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(channels, BC)
    pid = tl.program_id(0)
    chunk = pid // blocks // samples
    sample = (pid // blocks % samples).to(tl.int64)
    # [BC]
    o_c = pid % blocks * BC + tl.arange(0, BC)
    m_c = o_c < channels
    p_c = x + sample * stride_n + o_c.to(tl.int64) * stride_c

    # [BT, BC]
    b_total = tl.zeros((BT, BC), tl.float32)
    b_squares = tl.zeros((BT, BC), tl.float32)
    b_peak = tl.zeros((BT, BC), tl.int32)
    for start in tl.range(0, CHUNK, BT, loop_unroll_factor=4):
        o_t = chunk * CHUNK + start + tl.arange(0, BT)
        m_x = (o_t < tokens)[:, None] & m_c[None, :]
        b_x = tl.load(p_c[None, :] + o_t.to(tl.int64)[:, None] * stride_t, mask=m_x, other=0.0).to(tl.float32)
        b_total += b_x
        b_squares += b_x * b_x
        # The bits of |x| are ordered like |x| with NaN above inf, so an integer maximum lets NaN through.
        b_peak = tl.maximum(b_peak, b_x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)

    o_out = (chunk * samples + sample) * channels + o_c
    tl.store(total + o_out, tl.sum(b_total, 0), mask=m_c)
    tl.store(squares + o_out, tl.sum(b_squares, 0), mask=m_c)
    tl.store(peak + o_out, tl.max(b_peak, 0).to(tl.float32, bitcast=True), mask=m_c)


def activation_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(total, squares, peak)`` over the tokens of ``x [N, T, C]``: float32 ``[N, C]``, zero when ``T == 0``.

    Args:
        x: float32, float16 or bfloat16, any strides.
    """
    samples, tokens, channels = x.shape
    if x.numel() == 0:
        total, squares, peak = (x.new_zeros(samples, channels, dtype=torch.float32) for _ in range(3))
        return total, squares, peak
    blocks = triton.cdiv(channels, BLOCK_C)
    # About 256 programs per sample fill a GPU; a partial costs 12 bytes, so a chunk is never short.
    chunk = min(max(triton.next_power_of_2(tokens * blocks // 256), 64), 1024)
    chunks = triton.cdiv(tokens, chunk)
    total, squares, peak = (
        torch.empty(chunks, samples, channels, dtype=torch.float32, device=x.device) for _ in range(3)
    )
    with torch.cuda.device_of(x):
        activation_stats_kernel[(blocks * samples * chunks,)](
            x, total, squares, peak, samples, tokens, channels, *x.stride(), CHUNK=chunk, BT=BLOCK_T, BC=BLOCK_C
        )
    if chunks == 1:
        return total[0], squares[0], peak[0]
    return total.sum(0), squares.sum(0), peak.amax(0)
