"""Run of the benchmark: its options, the choice of cases, and the results, stored as they come."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pruneengine.bench import report
from pruneengine.bench.case import Case
from pruneengine.bench.cases import CASES
from pruneengine.bench.environment import RESULTS, device_name, versions
from pruneengine.bench.machine import BUFFER_BYTES, probes
from pruneengine.bench.measure import Bench, OpRow, measure
from pruneengine.bench.providers import DEFAULT, PROVIDERS, missing, takes_part
from pruneengine.bench.record import Setting, record
from pruneengine.bench.shapes import DTYPES, Layer, Shape, parse_shapes
from pruneengine.bench.targets import verdicts
from pruneengine.bench.timing import Timer, timer_for
from pruneengine.common.errors import InputError
from pruneengine.common.progress import track


@dataclass(frozen=True)
class BenchOptions:
    """Options of a run, as the command line gives them. Empty means all ops, or the device's default providers."""

    ops: Sequence[str] = ()
    shapes: Sequence[str] = ("headline",)
    dtype: str = "bfloat16"
    device: str = "cpu"
    providers: Sequence[str] = ()
    rounds: int = 7
    threads: Sequence[int] = (1,)  # of torch and ours alike; several numbers are measured one after the other
    budget: float = 15.0  # seconds per case, about
    results: Path = RESULTS

    def __post_init__(self) -> None:
        for name in self.ops:
            _require("op", name, op_names())
        for name in self.providers:
            _require("provider", name, PROVIDERS)
        _require("dtype", self.dtype, DTYPES)
        for name, values in (("rounds", [self.rounds]), ("threads", self.threads)):
            if bad := [value for value in values if value < 1]:
                raise InputError(f"{name} is {bad[0]}; expected at least 1")
        _require_device(self.device)
        for name in self.shapes:
            parse_shapes(name)

    @classmethod
    def parse(cls, **texts: str | int | Path | None) -> BenchOptions:
        """Return options from texts: lists comma separated, None for the default.

        Raises:
            ValueError: the threads are not numbers, or the options themselves refuse a value.
        """
        values: dict[str, Any] = {name: value for name, value in texts.items() if value is not None}
        for name in ("ops", "shapes", "providers", "threads"):
            if name in values:
                values[name] = tuple(word.strip() for word in str(values[name]).split(",") if word.strip())
        try:
            values["threads"] = tuple(int(word) for word in values.get("threads", (1,)))
        except ValueError:
            raise InputError(f"threads {texts['threads']!r}; expected numbers, comma separated") from None
        return cls(**values)


@dataclass
class BenchResult:
    """All rows of a run, the reason for each failure by case and provider, and a flag for an interrupt."""

    rows: list[OpRow] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """130 after an interrupt, 1 after a failure, else 0."""
        return 130 if self.interrupted else int(bool(self.failures))


def op_names() -> list[str]:
    """Return the names of all ops that have a case."""
    return list(dict.fromkeys(case.op for case in CASES))


def describe() -> list[str]:
    """Return one line per op with its cases."""
    width = max(map(len, op_names())) + 2
    return [f"{op:<{width}}{' | '.join(case.name for case in CASES if case.op == op)}" for op in op_names()]


def run(
    options: BenchOptions,
    say: Callable[[str], None] = print,
    timer: Timer | None = None,
    buffer_bytes: int = BUFFER_BYTES,
) -> BenchResult:
    """Run the benchmark; print each case when it is done and store its rows at once in ``ops.csv``.

    Raises:
        ValueError: no provider has a case of the given ops that fits the given shapes.
        RuntimeError: a provider that was asked for is missing here; the message has the reason.
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
    """Return the cases and shapes, each once, that some provider can run; raise ValueError if there are none."""
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
        raise InputError(f"nothing to measure on {device}: {told}")
    return list(dict.fromkeys(planned))


def _fits(case: Case, shape: Shape) -> bool:
    """Return False for 2:4 on columns that are not a multiple of four."""
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
    """Raise ValueError unless the device is cpu or one of the CUDA devices that torch sees."""
    if name == "cpu":
        return
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if not match:
        raise InputError(f"device {name!r}; expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= count:
        seen = f"cpu or cuda:0 to cuda:{count - 1}" if count else "cpu, as torch sees no CUDA device"
        raise InputError(f"device {name!r}; expected {seen}")


def _require(what: str, name: str, known: Collection[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
    raise InputError(f"unknown {what} {name!r}; {hint}")
