"""Fast dropout for CPUs: torch's draws a float64 per element, and a LoRA step drops out the input of every linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 2**16


class SixteenBitDropout(nn.Module):
    """Dropout with probability ``round(65536 p) / 65536``; the other elements are scaled up to keep the expectation.

    Four elements share one 64-bit draw from torch's default generator, whose state checkpoints keep.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.level = min(round(p * LEVELS), LEVELS - 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.level:
            return x
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = draws[: x.numel()].view(x.shape) >= self.level - LEVELS // 2
        return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - self.level))

    def extra_repr(self) -> str:
        return f"p={self.level / LEVELS:g}"
