"""Seconds of a call: by the clock on a CPU, by events on a GPU; and how many rounds a budget allows."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

SAMPLE_S = 0.02  # a shorter sample is at the mercy of the clock and the scheduler
GPU_REPEATS = 10
FLUSH_BYTES = 256 << 20  # more than any L2 cache holds
# A GPU that sleeps this long lets Python enqueue the call behind it: what is timed then is the device alone.
SLEEP_CYCLES = 400_000


class Timer(Protocol):
    """Something that times calls."""

    def sample(self, call: Callable[[], object], estimate: float) -> float:
        """Seconds of one call, over as many calls as ``estimate`` seconds each make a dependable sample."""


class CpuTimer:
    """Wall time, over at least 20 ms of calls, or over one call."""

    def sample(self, call: Callable[[], object], estimate: float) -> float:
        calls = max(1, math.ceil(SAMPLE_S / max(estimate, 1e-7)))
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls


class CudaTimer:
    """Time between two events around each call, the L2 cache overwritten before it; the median of several calls."""

    def __init__(self, device: torch.device) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def sample(self, call: Callable[[], object], estimate: float) -> float:
        calls = max(1, min(GPU_REPEATS, math.ceil(SAMPLE_S / max(estimate, 1e-7))))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in events:
            self._flush.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def timer_for(device: torch.device) -> Timer:
    return CudaTimer(device) if device.type == "cuda" else CpuTimer()


def plan_rounds(estimates: Mapping[str, float], most: int, budget: float) -> dict[str, int]:
    """Rounds by provider: every one at least once, then one more each, the quick first, while seconds are left."""
    costs = {name: max(estimate, SAMPLE_S) for name, estimate in sorted(estimates.items(), key=lambda item: item[1])}
    rounds, left = dict.fromkeys(costs, 1), budget - sum(costs.values())
    for _ in range(1, most):
        for name, cost in costs.items():
            if cost <= left:
                rounds[name] += 1
                left -= cost
    return {name: rounds[name] for name in estimates}
