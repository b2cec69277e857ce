"""A run of the benchmark: which cases, on what, and the results kept as they come."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pruneengine.bench import report
from pruneengine.bench.case import Case
from pruneengine.bench.cases import CASES
from pruneengine.bench.here import RESULTS, device_name, versions
from pruneengine.bench.machine import BUFFER_BYTES, probes
from pruneengine.bench.measure import Bench, OpRow, measure
from pruneengine.bench.providers import DEFAULT, PROVIDERS, missing, takes_part
from pruneengine.bench.record import Setting, record
from pruneengine.bench.shapes import DTYPES, Layer, Shape, parse_shapes
from pruneengine.bench.targets import verdicts
from pruneengine.bench.timing import Timer, timer_for
from pruneengine.common.progress import track


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, as the command line gives it. Empty means all ops, or the device's own providers."""

    ops: Sequence[str] = ()
    shapes: Sequence[str] = ("headline",)
    dtype: str = "bfloat16"
    device: str = "cpu"
    providers: Sequence[str] = ()
    rounds: int = 7
    threads: Sequence[int] = (1,)  # of torch and ours alike; several are measured one after the other
    budget: float = 15.0  # seconds a case, about
    results: Path = RESULTS

    def __post_init__(self) -> None:
        for name in self.ops:
            _require("op", name, op_names())
        for name in self.providers:
            _require("provider", name, PROVIDERS)
        _require("dtype", self.dtype, DTYPES)
        for name, values in (("rounds", [self.rounds]), ("threads", self.threads)):
            if bad := [value for value in values if value < 1]:
                raise ValueError(f"{name} is {bad[0]}; expected at least 1")
        _require_device(self.device)
        for name in self.shapes:
            parse_shapes(name)

    @classmethod
    def parse(cls, **given: str | int | Path | None) -> BenchOptions:
        """Options from words: lists comma separated, None for the default.

        Raises:
            ValueError: a number of threads that is none, and what the options themselves refuse.
        """
        values = {name: value for name, value in given.items() if value is not None}
        for name in ("ops", "shapes", "providers", "threads"):
            if name in values:
                values[name] = tuple(word.strip() for word in str(values[name]).split(",") if word.strip())
        try:
            values["threads"] = tuple(int(word) for word in values.get("threads", (1,)))
        except ValueError:
            raise ValueError(f"threads {given['threads']!r}; expected numbers, comma separated") from None
        return cls(**values)


@dataclass
class BenchResult:
    """All rows of a run, which providers failed in which case and why, and whether it was interrupted."""

    rows: list[OpRow] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        return 130 if self.interrupted else int(bool(self.failures))


def op_names() -> list[str]:
    """Every op that is measured."""
    return list(dict.fromkeys(case.op for case in CASES))


def describe() -> list[str]:
    """A line an op: its cases."""
    width = max(map(len, op_names())) + 2
    return [f"{op:<{width}}{' | '.join(case.name for case in CASES if case.op == op)}" for op in op_names()]


def run(
    options: BenchOptions,
    say: Callable[[str], None] = print,
    timer: Timer | None = None,
    buffer_bytes: int = BUFFER_BYTES,
) -> BenchResult:
    """Measure, telling each case when it is done and keeping its rows at once in ``ops.csv``.

    Raises:
        ValueError: none of the providers has a case of these ops that fits these shapes.
        RuntimeError: a provider that was asked for is missing here; the message says why.
    """
    device, result = torch.device(options.device), BenchResult()
    providers = _providers(options, device, say)
    planned = _planned(options, device, providers)
    before = torch.get_num_threads()
    try:
        # Events, graphs and Triton's launches are those of the current device.
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            for threads in options.threads:
                torch.set_num_threads(threads)
                _run(options, device, providers, planned, result, say, timer or timer_for(device), buffer_bytes)
    except KeyboardInterrupt:
        result.interrupted = True
        say("interrupted: what was measured is kept")
    finally:
        torch.set_num_threads(before)
    for line in verdicts(result.rows):
        say(line)
    for title, why in result.failures.items():
        say(f"FAILED: {title}: {why}")
    if result.rows:
        say(f"written: {options.results / 'ops.csv'}")
    return result


def _run(
    options: BenchOptions,
    device: torch.device,
    providers: list[str],
    planned: Sequence[tuple[Case, Shape]],
    result: BenchResult,
    say: Callable[[str], None],
    timer: Timer,
    buffer_bytes: int,
) -> None:
    threads = torch.get_num_threads()
    name = device_name(device)
    bench = Bench(
        device=device, dtype=DTYPES[options.dtype], providers=providers, probes=probes(device, timer, buffer_bytes),
        timer=timer, setting=Setting.here("ops", threads, name), versions=versions("torch", "triton"),
        rounds=options.rounds, budget=options.budget,
    )  # fmt: skip
    say(f"{name}; {bench.versions}; {threads} thread{'s' * (threads > 1)}; commit {bench.setting.commit}\n")
    for case, shape in track(planned, "bench"):
        outcome = measure(bench, case, shape)
        result.rows += outcome.rows
        result.failures |= {f"{case.title}, {shape}, {who}": why for who, why in outcome.failures.items()}
        record(outcome.rows, options.results)
        say("\n".join(report.lines(outcome)) + "\n")


def _planned(options: BenchOptions, device: torch.device, providers: list[str]) -> list[tuple[Case, Shape]]:
    """Cases and shapes, each once, that some provider can run; a run without one is refused."""
    planned = [
        (case, shape)
        for case in CASES
        if (not options.ops or case.op in options.ops) and (device.type == "cuda" or not case.gpu_only)
        if any(takes_part(name, case) for name in providers)
        for named in options.shapes
        for shape in parse_shapes(named).of_kind(case.kind)
        if _fits(case, shape)
    ]
    if not planned:
        asked = {"ops": options.ops or ["all"], "shapes": options.shapes, "providers": providers or ["none"]}
        told = "; ".join(f"{name} {', '.join(words)}" for name, words in asked.items())
        raise ValueError(f"nothing to measure on {device}: {told}")
    return list(dict.fromkeys(planned))


def _fits(case: Case, shape: Shape) -> bool:
    """2:4 needs columns in fours."""
    widths = [columns for _, columns in shape.weights] if isinstance(shape, Layer) else [shape.columns]
    return case.op not in ("nm_mask", "nm_apply") or all(width % 4 == 0 for width in widths)


def _providers(options: BenchOptions, device: torch.device, say: Callable[[str], None]) -> list[str]:
    names = []
    for name in options.providers or DEFAULT[device.type]:
        reason = missing(name, device)
        if reason and options.providers:
            raise RuntimeError(f"provider {name!r} cannot run here: {reason}")
        if reason:
            say(f"without {name}: {reason}")
        else:
            names.append(name)
    return names


def _require_device(name: str) -> None:
    """cpu, or one of the CUDA devices that torch sees."""
    if name == "cpu":
        return
    found = re.fullmatch(r"cuda(?::(\d+))?", name)
    if not found:
        raise ValueError(f"device {name!r}; expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(found[1] or 0) >= count:
        seen = f"cpu or cuda:0 to cuda:{count - 1}" if count else "cpu, as torch sees no CUDA device"
        raise ValueError(f"device {name!r}; expected {seen}")


def _require(what: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    raise ValueError(f"unknown {what} {name!r}; {hint}")
