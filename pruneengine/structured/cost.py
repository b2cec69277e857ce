"""Cost of a prune, predicted from shapes alone: memory, arithmetic and time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from pruneengine.calibration.calibrate import ELEMENTWISE, SIGNED
from pruneengine.model import Structure
from pruneengine.structured.scores.hywia import needs_of


@dataclass(frozen=True)
class Prediction:
    """Estimates for the statistics pass of one method.

    Attributes:
        bytes: peak memory, weights included.
        passes: cost in forward passes over the calibration text.
        seconds: at the given rate of arithmetic.
    """

    method: str
    bytes: int
    passes: float
    seconds: float


def predict(
    structure: Structure, method: str, nsamples: int, seqlen: int, batch_size: int, itemsize: int, flops: float
) -> Prediction:
    """Estimate one method's statistics pass.

    Args:
        structure: the model's structure.
        method: name of a metric or of a fused method.
        nsamples: number of calibration samples.
        seqlen: tokens per sample.
        batch_size: samples per forward pass.
        itemsize: bytes per weight.
        flops: floating-point operations per second, see :func:`measure_flops`.
    """
    needs = needs_of(method)
    layer = max(structure.layer_params)
    hidden, widest = _widths(structure)
    batch_tokens = min(batch_size, nsamples) * seqlen
    # Saved by autograd per token and layer: two norms, q, k, v, attention, residuals, and three MLP-wide tensors.
    saved = batch_tokens * (8 * hidden + 3 * widest) * itemsize
    memory = structure.total_params * itemsize
    if not needs:
        passes = 0.0
    elif needs & ELEMENTWISE:
        # Two forwards and a backward of two halves: towards the input, and towards the weights.
        passes = 4.0
        memory += saved + nsamples * seqlen * hidden * itemsize * structure.num_layers
        memory += layer * 4 * (2 if "mix" in needs else 1)
    elif needs & SIGNED:
        passes = 2.0
        memory += saved * structure.num_layers
    else:
        passes = 1.0
        memory += saved
    forward = 2.0 * structure.total_params * nsamples * seqlen
    return Prediction(method, memory, passes, passes * forward / flops)


def measure_flops(dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 1024) -> float:
    """Measure the matrix-multiply rate of this machine, in operations per second: the best of five short products."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def _widths(structure: Structure) -> tuple[int, int]:
    """Return the hidden size and the largest number of input channels."""
    channels = [site.channels for site in structure.sites]
    hidden = next(site.channels for site in structure.sites if site.name.endswith("attn_in"))
    return hidden, max(channels)
