"""Limits of the machine, measured in turn with the ops: reading, copying, multiplying matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneengine.bench.timing import Timer

BUFFER_BYTES = 512 << 20  # beyond every cache
CPU_MATMUL, GPU_MATMUL = 2048, 8192
# The fastest is taken: none of them computes enough to matter, but not all are equally well written.
READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "amax": torch.amax,
    "dot": lambda buffer: torch.dot(*buffer.view(2, -1)),
}


@dataclass(frozen=True)
class Probe:
    """A call that does nothing but move ``amount`` bytes, or multiply with ``amount`` FLOP."""

    name: str
    call: Callable[[], object]
    amount: int
    unit: str  # GB/s or TFLOP/s

    def rate(self, seconds: float) -> float:
        """Return the rate of a call of that many seconds, in ``unit``."""
        return self.amount / seconds / (1e9 if self.unit == "GB/s" else 1e12)


def probes(device: torch.device, timer: Timer, buffer_bytes: int = BUFFER_BYTES) -> dict[str, Probe]:
    """Return the limits by name: ``copy`` (read + write), ``matmul``, and ``read``, which on a GPU is the copy again.

    A read is the fastest of a sum, a maximum and a dot product over the buffer; the copy is ``copy_`` of the buffer to
    another. Matrices are float32 on a CPU and bfloat16 on a GPU.
    """
    buffer = torch.zeros(buffer_bytes // 4, dtype=torch.float32, device=device)
    other = torch.zeros_like(buffer)
    copy = Probe("copy", lambda: other.copy_(buffer), 2 * buffer_bytes, "GB/s")
    if device.type == "cuda":
        return {"read": copy, "copy": copy, "matmul": _matmul(GPU_MATMUL, torch.bfloat16, device)}
    calls = {name: functools.partial(read, buffer) for name, read in READERS.items()}
    seconds = {name: min(timer.sample(call, 1.0) for _ in range(3)) for name, call in calls.items()}
    read = Probe("read", calls[min(seconds, key=seconds.__getitem__)], buffer_bytes, "GB/s")
    return {"read": read, "copy": copy, "matmul": _matmul(CPU_MATMUL, torch.float32, device)}


def _matmul(size: int, dtype: torch.dtype, device: torch.device) -> Probe:
    # Random values: a GPU multiplies zeros faster than it does data.
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return Probe("matmul", lambda: torch.mm(left, right, out=out), 2 * size**3, "TFLOP/s")
