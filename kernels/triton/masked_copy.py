"""Copy of a weight at any sparsity, from one byte per weight: ``out = weight where codes >= level, else 0``.

Weight and out are ``[R, C]`` of any dtype of 1, 2, 4 or 8 bytes, moved as integers of that size, so that every bit
pattern survives; codes are uint8 ``[R, C]``. The rows of all three are contiguous. The same program reads each
element before it writes it, so out may be the weight itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCK = 4096


@triton.jit(do_not_specialize=["level"])
def masked_copy_kernel(weight, codes, out, columns, stride_w, stride_c, stride_o, level, BC: tl.constexpr):
    blocks = tl.cdiv(columns, BC)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    # [BC]
    o_c = (tl.program_id(0) % blocks).to(tl.int64) * BC + tl.arange(0, BC)
    m_c = o_c < columns
    b_code = tl.load(codes + row * stride_c + o_c, mask=m_c, other=0).to(tl.int32)
    b_w = tl.load(weight + row * stride_w + o_c, mask=m_c, other=0)
    tl.store(out + row * stride_o + o_c, tl.where(b_code >= level, b_w, 0), mask=m_c)


def masked_copy(weight: Tensor, codes: Tensor, level: int, out: Tensor) -> None:
    """Fill ``out`` with the weight at sparsity ``level / 256``.

    Args:
        weight: ``[R, C]``, any dtype of 1, 2, 4 or 8 bytes, ``stride(1) == 1``.
        codes: uint8 ``[R, C]``, ``stride(1) == 1``.
        level: ``0 <= level <= 256``.
        out: as the weight; may be the weight.
    """
    if weight.numel() == 0:
        return
    integer = INTEGERS[weight.element_size()]
    tensors = [weight.view(integer), codes, out.view(integer)]
    if all(tensor.is_contiguous() for tensor in tensors):
        # One long row leaves no block half empty.
        tensors = [tensor.view(1, -1) for tensor in tensors]
    rows, columns = tensors[0].shape
    strides = [tensor.stride(0) for tensor in tensors]
    with torch.cuda.device_of(weight):
        masked_copy_kernel[(rows * triton.cdiv(columns, BLOCK),)](
            *tensors, columns, *strides, level, BC=BLOCK, num_warps=8
        )
