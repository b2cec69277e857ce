"""Distance between llama.cpp's next-token distributions and those of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pruneengine.export.compare_logits import logits
from pruneengine.export.gguf import llama_cpp

# Rows whose logits are held at a time.
ROWS = 4


@dataclass(frozen=True)
class Distance:
    """Two models on the same windows.

    Attributes:
        tokens: predicted ones.
        ours, theirs: perplexity of the checkpoint and of the file in llama.cpp.
        largest: difference of two logits.
        divergence: mean over the tokens of KL(ours || theirs), nats.
        agreeing: share of the tokens with the same most likely one.
    """

    tokens: int
    ours: float
    theirs: float
    largest: float
    divergence: float
    agreeing: float

    def values(self) -> list[tuple[str, str, str, float]]:
        """(provider, quantity, unit, value), a line of the results each."""
        return [
            ("pruneengine", "perplexity", "", self.ours),
            ("llama.cpp", "perplexity", "", self.theirs),
            ("llama.cpp", "largest difference of logits", "", self.largest),
            ("llama.cpp", "KL divergence", "nats", self.divergence),
            ("llama.cpp", "same most likely token", "share", self.agreeing),
            ("llama.cpp", "predicted tokens", "", float(self.tokens)),
        ]

    def __str__(self) -> str:
        return (
            f"perplexity {self.ours:.4f} here, {self.theirs:.4f} in llama.cpp ({self.tokens:,} tokens); logits differ "
            f"by up to {self.largest:.2g}, KL {self.divergence:.1e} nats, the most likely token equal at "
            f"{self.agreeing:.2%}"
        )


def distance(model: nn.Module, file: Path, windows: Tensor) -> Distance:
    """Run both.

    Args:
        model: the checkpoint.
        file: its GGUF file.
        windows: token ids, int64 ``(rows, length)``; tokens 1 to length - 1 are predicted.

    Raises:
        ReloadError: llama.cpp does not run the file.
    """
    losses, divergences, agreeing, largest = ([], []), [], [], 0.0
    for rows in windows.split(ROWS):
        both = [found[:, :-1] for found in (logits(model, rows), llama_cpp.logits(file, rows))]
        largest = max(largest, (both[0] - both[1]).abs().max().item())
        agreeing.append((both[0].argmax(-1) == both[1].argmax(-1)).double())
        both = [torch.log_softmax(found, -1) for found in both]
        for held, found in zip(losses, both, strict=True):
            held.append(-found.gather(-1, rows[:, 1:, None]).double())
        divergences.append((both[0].exp() * (both[0] - both[1])).sum(-1).double())
    ours, theirs = (math.exp(torch.cat(held).mean().item()) for held in losses)
    return Distance(
        tokens=windows[:, 1:].numel(),
        ours=ours,
        theirs=theirs,
        largest=largest,
        divergence=torch.cat(divergences).mean().item(),
        agreeing=torch.cat(agreeing).mean().item(),
    )
