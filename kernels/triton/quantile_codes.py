"""One byte per weight that holds the masks of all sparsities: ``code = floor(256 r / C)`` of the rank r in its row.

PyTorch's stable sort gives the order of each row; a kernel writes each rank's code to the place of its score. Scores
are ``[R, C]``, float32 or 16-bit floats; with a norm they are ``|x| * norm`` in float32. Rows are sorted in bands, so
that the temporaries stay small beside the scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
# A score of a band takes 4 bytes, its sorted copy 4, its index 8, and the sort as much again.
BAND_SCORES = (64 << 20) // 32


@triton.jit
def codes_kernel(order, codes, columns, BC: tl.constexpr):
    blocks = tl.cdiv(columns, BC)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    # [BC]
    o_rank = (tl.program_id(0) % blocks).to(tl.int64) * BC + tl.arange(0, BC)
    m_rank = o_rank < columns
    b_c = tl.load(order + row * columns + o_rank, mask=m_rank, other=0)
    tl.store(codes + row * columns + b_c, (o_rank * 256 // columns).to(tl.uint8), mask=m_rank)


def quantile_codes(scores: Tensor, norm: Tensor | None = None) -> Tensor:
    """Return ``floor(256 r / C)`` for the ascending rank r of each score in its row: uint8 ``[R, C]``.

    Equal scores rank by column.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, ``stride(1) == 1``, without NaN.
        norm: None, or float32 ``[C]``, non-negative: the scores are ``|scores| * norm``.
    """
    rows, columns = scores.shape
    codes = torch.empty(rows, columns, dtype=torch.uint8, device=scores.device)
    if codes.numel() == 0:
        return codes
    band = max(BAND_SCORES // columns, 1)
    with torch.cuda.device_of(scores):
        for begin in range(0, rows, band):
            part = scores[begin : begin + band]
            # Minus zero plus zero is zero; bfloat16 scores order the same and sort in half the passes.
            part = part + 0.0 if norm is None else part.float().abs() * norm
            order = part.sort(dim=1, stable=True).indices
            grid = (len(part) * triton.cdiv(columns, BLOCK),)
            codes_kernel[grid](order, codes[begin : begin + band], columns, BC=BLOCK, num_warps=8)
    return codes
