"""Row and column sums of weight times gradient, with the gradient formed tile by tile and never stored.

    G[n] = sum_t outer(delta[n, t], x[n, t])        p = W * G[n]
    rows[n, f, r] = sum_c form_f(p[r, c])        columns[n, f, c] = sum_r form_f(p[r, c])

``delta`` is ``[N, T, R]``, ``x`` ``[N, T, C]`` and ``W`` ``[R, C]``; the forms are those of ``taylor_scores``: p, |p|,
p^2. A program computes one tile of one gradient, a matrix product over tokens in float32, multiplies it by its tile of
``W`` and reduces it along both axes; the partials of the tiles are summed in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of tiles that run next to each other, so that they find each other's operands in L2.
GROUP = 8
# Partials in flight: enough tiles for a GPU many times over, at a few KiB each.
MAX_TILES = 8192


@triton.jit
def taylor_scores_outer_kernel(
    weight,
    delta,
    x,
    row_sums,
    column_sums,
    tokens,
    rows,
    columns,
    stride_w,
    stride_dn,
    stride_dt,
    stride_xn,
    stride_xt,
    UPCAST: tl.constexpr,
    GROUP: tl.constexpr,
    BT: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    blocks_r, blocks_c = tl.cdiv(rows, BR), tl.cdiv(columns, BC)
    tiles = blocks_r * blocks_c
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    first = tile // (GROUP * blocks_c) * GROUP
    height = tl.minimum(blocks_r - first, GROUP)
    block_r = first + tile % (GROUP * blocks_c) % height
    block_c = tile % (GROUP * blocks_c) // height
    # [BR], [BC], [BT]
    o_r = block_r * BR + tl.arange(0, BR)
    o_c = block_c * BC + tl.arange(0, BC)
    o_t = tl.arange(0, BT)
    m_r, m_c = o_r < rows, o_c < columns

    # [BR, BT] as it lies, a column a token: transposed after the load it would not go straight to shared memory.
    p_delta = delta + sample * stride_dn + o_r[:, None] + o_t.to(tl.int64)[None, :] * stride_dt
    # [BT, BC]
    p_x = x + sample * stride_xn + o_t.to(tl.int64)[:, None] * stride_xt + o_c[None, :]
    step = tl.full((), BT, tl.int64)
    # [BR, BC]
    b_gradient = tl.zeros((BR, BC), tl.float32)
    for start in range(0, tokens, BT):
        m_t = o_t < tokens - start
        b_delta = tl.load(p_delta, mask=m_r[:, None] & m_t[None, :], other=0.0)
        b_x = tl.load(p_x, mask=m_t[:, None] & m_c[None, :], other=0.0)
        if UPCAST:
            b_delta, b_x = b_delta.to(tl.float32), b_x.to(tl.float32)
        b_gradient = tl.dot(b_delta, b_x, b_gradient, input_precision="ieee")
        p_delta += stride_dt * step
        p_x += stride_xt * step

    # Half a tile at a time: beside a whole one its weights do not fit in registers.
    b_left, b_right = tl.split(tl.permute(tl.reshape(b_gradient, (BR, 2, BC // 2)), (0, 2, 1)))
    row_sums += (2 * block_c * (tl.num_programs(0) // tiles) + sample) * 3 * rows
    column_sums += (block_r * (tl.num_programs(0) // tiles) + sample) * 3 * columns
    for half in tl.static_range(2):
        o_h = block_c * BC + half * (BC // 2) + tl.arange(0, BC // 2)
        m_h = o_h < columns
        p_w = weight + o_r.to(tl.int64)[:, None] * stride_w + o_h[None, :]
        b_p = tl.load(p_w, mask=m_r[:, None] & m_h[None, :], other=0.0).to(tl.float32) * (b_right if half else b_left)
        p_rows = row_sums + half * (tl.num_programs(0) // tiles) * 3 * rows
        for form in tl.static_range(3):
            b_form = b_p if form == 0 else (tl.abs(b_p) if form == 1 else b_p * b_p)
            tl.store(p_rows + form * rows + o_r, tl.sum(b_form, 1), mask=m_r)
            tl.store(column_sums + form * columns + o_h, tl.sum(b_form, 0), mask=m_h)


def launch_options(dtype: torch.dtype, aligned: bool) -> dict[str, int]:
    """Return tile, warps and stages.

    Only operands that are copied to shared memory 16 bytes at a time feed large tiles.
    """
    if not aligned:
        return {"BT": 32, "BR": 64, "BC": 64, "num_warps": 4, "num_stages": 2}
    if dtype == torch.float32:
        return {"BT": 16, "BR": 128, "BC": 128, "num_warps": 8, "num_stages": 2}
    if torch.version.hip:
        return {"BT": 32, "BR": 128, "BC": 128, "num_warps": 8, "num_stages": 2}
    # What is in flight takes 144 KiB of shared memory on sm_90 and 96 KiB on sm_80, which sm_86 and sm_89 have, too.
    return {"BT": 64, "BR": 128, "BC": 256, "num_warps": 8, "num_stages": 3}


def taylor_scores_outer(weight: Tensor, delta: Tensor, x: Tensor, per_sample: bool) -> tuple[Tensor, Tensor]:
    """Return ``(rows, columns)``: float32 ``[N, 3, R]`` and ``[N, 3, C]``; over all samples together ``[1, ...]``.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``.
        delta: gradient of the loss at the layer's output ``[N, T, R]``, float32, float16 or bfloat16, any strides.
        x: the layer's input ``[N, T, C]``, of delta's dtype, any strides.
        per_sample: one gradient per sample instead of one over all.
    """
    rows, columns = weight.shape
    if not per_sample:
        delta, x = delta.flatten(0, 1)[None], x.flatten(0, 1)[None]
    # A load of 16 bytes needs neighbouring channels; a copy is cheap beside the product.
    delta, x = (t if t.stride(2) == 1 else t.contiguous() for t in (delta, x))
    samples, tokens = x.shape[:2]
    if samples * tokens * weight.numel() == 0:
        return tuple(weight.new_zeros(samples, 3, size, dtype=torch.float32) for size in weight.shape)
    sizes = (*weight.shape, weight.stride(0), *delta.stride()[:2], *x.stride()[:2])
    starts = (t.data_ptr() for t in (weight, delta, x))
    options = launch_options(x.dtype, aligned=all(number % 16 == 0 for number in (*sizes, *starts)))
    blocks_r, blocks_c = triton.cdiv(rows, options["BR"]), triton.cdiv(columns, options["BC"])
    count = max(MAX_TILES // (blocks_r * blocks_c), 1)
    sums = []
    for some_delta, some_x in zip(delta.split(count), x.split(count), strict=True):
        row_sums = torch.empty(2 * blocks_c, len(some_x), 3, rows, dtype=torch.float32, device=weight.device)
        column_sums = torch.empty(blocks_r, len(some_x), 3, columns, dtype=torch.float32, device=weight.device)
        with torch.cuda.device_of(weight):
            taylor_scores_outer_kernel[(blocks_r * blocks_c * len(some_x),)](
                weight,
                some_delta,
                some_x,
                row_sums,
                column_sums,
                tokens,
                rows,
                columns,
                weight.stride(0),
                *some_delta.stride()[:2],
                *some_x.stride()[:2],
                # Interpreted, a dot of bfloat16 is silently wrong.
                UPCAST=triton.knobs.runtime.interpret,
                GROUP=GROUP,
                **options,
            )
        sums.append((row_sums.sum(0), column_sums.sum(0)))
    return sums[0] if len(sums) == 1 else tuple(torch.cat(parts) for parts in zip(*sums, strict=True))
