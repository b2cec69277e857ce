"""Measurement of one case on one shape: the gate, then its providers and the machine's limit in turn."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pruneengine.bench import gate
from pruneengine.bench.case import Case, Inputs, Work
from pruneengine.bench.machine import Probe
from pruneengine.bench.providers import Provider, providers_of, replayed
from pruneengine.bench.record import Row, Setting
from pruneengine.bench.shapes import Shape, short
from pruneengine.bench.timing import Timer, interleave, plan_rounds

IN_CACHE = 32 << 20  # bytes: fewer may stay in a CPU's cache, where memory is no limit
Ready = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class OpRow(Row):
    """A row of the ops' results, with the parts of its case in columns of their own."""

    op: str
    variant: str
    shape: str
    dtype: str
    on: str  # cpu or cuda


@dataclass(frozen=True)
class Bench:
    """Values that all cases of a run share."""

    device: torch.device
    dtype: torch.dtype
    providers: list[str]
    probes: Mapping[str, Probe]
    timer: Timer
    setting: Setting
    versions: str
    rounds: int
    budget: float  # seconds per case, about


@dataclass(frozen=True)
class Outcome:
    """The rows of one case and shape, and the reason for each provider that failed the gate."""

    case: Case
    shape: Shape
    rows: list[OpRow]
    failures: dict[str, str]


def measure(bench: Bench, case: Case, shape: Shape) -> Outcome:
    """Gate and time one case. A provider that fails is not timed; a case that cannot be run fails as a whole."""
    try:
        return _measure(bench, case, shape)
    except Exception as error:  # out of memory, a graph that cannot be captured: the other cases go on
        return Outcome(case, shape, [], {"case": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(bench: Bench, case: Case, shape: Shape) -> Outcome:
    inputs = Inputs(bench.device, bench.dtype)
    failures = gate.failures(case, inputs, bench.providers)
    work = case.make(inputs, shape)
    providers = [p for p in providers_of(case, work, bench.providers) if p.name not in failures]
    failures |= gate.failures_as_timed(work, providers)
    providers = [p for p in providers if p.name not in failures]
    probe = bench.probes[case.limit]
    rows = _rows(bench, case, shape, work, probe, _times(bench, case, work, providers, probe)) if providers else []
    return Outcome(case, shape, rows, failures)


def _times(
    bench: Bench, case: Case, work: Work, providers: Sequence[Provider], probe: Probe
) -> dict[str, dict[str, list[float]]]:
    samplers = {p.name: _Sampler(bench.timer, *_call(bench, case, work, p)) for p in providers}
    samplers[probe.name] = _Sampler(bench.timer, probe.call, contextlib.nullcontext)
    # The gate made the first call; this one is like all that follow.
    estimates = {name: sampler(math.inf)["time"] for name, sampler in samplers.items()}
    timed = {name: functools.partial(sampler, estimates[name]) for name, sampler in samplers.items()}
    return interleave(timed, plan_rounds(estimates, bench.rounds, bench.budget), warmup=0)


def _call(bench: Bench, case: Case, work: Work, provider: Provider) -> tuple[Callable[[], object], Ready]:
    call = provider.bind(work)
    if not (case.graph and provider.ours and bench.device.type == "cuda"):
        return call, provider.ready
    with provider.ready():
        return replayed(call), contextlib.nullcontext


@dataclass(frozen=True)
class _Sampler:
    timer: Timer
    call: Callable[[], object]
    ready: Ready

    def __call__(self, estimate: float) -> dict[str, float]:
        with self.ready():
            return {"time": self.timer.sample(self.call, estimate)}


def _rows(
    bench: Bench, case: Case, shape: Shape, work: Work, probe: Probe, times: dict[str, dict[str, list[float]]]
) -> list[OpRow]:
    dtype = short(bench.dtype)
    title = f"{case.title}, {shape} {dtype}"
    columns: dict[str, Any] = {"op": case.op, "variant": case.name, "shape": str(shape), "dtype": dtype}
    columns["on"] = bench.device.type
    made = Probe(probe.name, probe.call, work.flops if case.limit == "matmul" else work.moved, probe.unit)
    rows = []

    def add(provider: str, quantity: str, unit: str, values: Sequence[float]) -> OpRow:
        row = bench.setting.row(title, provider, quantity, unit, values, bench.versions)
        rows.append(OpRow(**asdict(row), **columns))
        return rows[-1]

    limit = add(probe.name, "rate", probe.unit, [probe.rate(s) for s in times.pop(probe.name)["time"]]).median
    bounded = bench.device.type == "cuda" or work.moved >= IN_CACHE or case.limit == "matmul"
    for provider, taken in times.items():
        rates = [made.rate(seconds) for seconds in taken["time"]]
        add(provider, "time", "s", taken["time"])
        add(provider, "rate", made.unit, rates)
        if bounded:
            add(provider, "share", probe.name, [rate / limit for rate in rates])
    return rows
