"""Timing of calls: seconds by the clock on a CPU and by events on a GPU, rounds within a budget, and turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

SAMPLE_S = 0.02  # seconds; the clock and the scheduler disturb a shorter sample
GPU_REPEATS = 10
FLUSH_BYTES = 256 << 20  # more than any L2 cache holds
# While a GPU sleeps this long, Python enqueues the call behind it, so that only the device is timed.
SLEEP_CYCLES = 400_000


class Timer(Protocol):
    """Clock for calls on one kind of device."""

    def sample(self, call: Callable[[], object], estimate: float) -> float:
        """Return the seconds of one call, over enough calls of about ``estimate`` seconds for a dependable sample."""


class CpuTimer:
    """Wall time over at least 20 ms of calls, or over one call."""

    def sample(self, call: Callable[[], object], estimate: float) -> float:
        """Return the mean seconds of a call."""
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
        """Return the median seconds of a call."""
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
    """Return the timer for a device."""
    return CudaTimer(device) if device.type == "cuda" else CpuTimer()


def plan_rounds(estimates: Mapping[str, float], most: int, budget: float) -> dict[str, int]:
    """Return the number of rounds per provider within a budget of seconds.

    Every provider takes part at least once. Then each gets one more round, the fastest first, while the budget lasts.
    """
    costs = {name: max(estimate, SAMPLE_S) for name, estimate in sorted(estimates.items(), key=lambda item: item[1])}
    rounds, remaining = dict.fromkeys(costs, 1), budget - sum(costs.values())
    for _ in range(1, most):
        for name, cost in costs.items():
            if cost <= remaining:
                rounds[name] += 1
                remaining -= cost
    return {name: rounds[name] for name in estimates}


def interleave(
    providers: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int | Mapping[str, int], warmup: int = 1
) -> dict[str, dict[str, list[float]]]:
    """Run the providers in turn, so that a busy machine slows all alike: ``{provider: {quantity: values}}``.

    Each call returns its own measurements. The order is rotated by one every round, and ``warmup`` rounds are dropped.
    ``rounds`` may differ by provider; slow providers then take part in the first rounds only.
    """
    names = list(providers)
    taken = rounds if isinstance(rounds, Mapping) else dict.fromkeys(names, rounds)
    values: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(-warmup, max(taken.values(), default=0)):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if number >= taken[name]:
                continue
            for quantity, value in providers[name]().items():
                if number >= 0:
                    values[name].setdefault(quantity, []).append(value)
    return values
