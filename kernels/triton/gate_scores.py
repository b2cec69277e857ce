"""Sum over tokens of an activation times its gradient, in one read of both.

    gate[n, c] = sum_t x[n, t, c] * dx[n, t, c]

``x`` and ``dx`` are ``[N, T, C]`` with any strides; the result is float32 ``[N, C]``. Tokens are split into chunks as
in ``activation_stats``: partials reduced in order, independent of the other samples.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T = 8
BLOCK_C = 128


@triton.jit
def gate_scores_kernel(
    x,
    dx,
    gate,
    samples,
    tokens,
    channels,
    stride_xn,
    stride_xt,
    stride_xc,
    stride_dn,
    stride_dt,
    stride_dc,
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
    p_x = x + sample * stride_xn + o_c.to(tl.int64) * stride_xc
    p_dx = dx + sample * stride_dn + o_c.to(tl.int64) * stride_dc

    # [BT, BC]
    b_gate = tl.zeros((BT, BC), tl.float32)
    for start in tl.range(0, CHUNK, BT, loop_unroll_factor=4):
        o_t = (chunk * CHUNK + start + tl.arange(0, BT)).to(tl.int64)
        m_x = (o_t < tokens)[:, None] & m_c[None, :]
        b_x = tl.load(p_x[None, :] + o_t[:, None] * stride_xt, mask=m_x, other=0.0).to(tl.float32)
        b_dx = tl.load(p_dx[None, :] + o_t[:, None] * stride_dt, mask=m_x, other=0.0).to(tl.float32)
        b_gate += b_x * b_dx

    tl.store(gate + (chunk * samples + sample) * channels + o_c, tl.sum(b_gate, 0), mask=m_c)


def gate_scores(x: Tensor, dx: Tensor) -> Tensor:
    """Return ``sum_t x * dx``: float32 ``[N, C]``, zero when ``T == 0``.

    Args:
        x: activations ``[N, T, C]``, float32, float16 or bfloat16, any strides.
        dx: gradient of the loss at ``x``, same shape.
    """
    samples, tokens, channels = x.shape
    if x.numel() == 0:
        return x.new_zeros(samples, channels, dtype=torch.float32)
    blocks = triton.cdiv(channels, BLOCK_C)
    # About 256 programs per sample fill a GPU; a chunk is never so short that partials cost much.
    chunk = min(max(triton.next_power_of_2(tokens * blocks // 256), 64), 1024)
    chunks = triton.cdiv(tokens, chunk)
    gate = torch.empty(chunks, samples, channels, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        gate_scores_kernel[(blocks * samples * chunks,)](
            x, dx, gate, samples, tokens, channels, *x.stride(), *dx.stride(), CHUNK=chunk, BT=BLOCK_T, BC=BLOCK_C
        )
    return gate[0] if chunks == 1 else gate.sum(0)
