"""Measured values: taken in turn, summarised as median and 20th / 80th percentile, kept in a CSV a theme."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np

from pruneengine.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KEY = ("theme", "case", "provider", "quantity", "device", "threads", "versions", "commit", "date")


class GateError(Exception):
    """A provider does not compute what is to be timed: nothing of its theme may be reported."""


@dataclass(frozen=True)
class Row:
    """One line of a results file: a quantity of one provider in one case."""

    theme: str
    case: str
    provider: str
    quantity: str
    unit: str
    median: float
    p20: float
    p80: float
    rounds: int
    device: str
    threads: int
    versions: str
    commit: str
    date: str

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(str(getattr(self, name)) for name in KEY)


@dataclass(frozen=True)
class Target:
    """A promise: the median of ``provider`` is at most ``factor`` times that of ``base`` in every case."""

    quantity: str
    provider: str
    base: str
    factor: float


@dataclass(frozen=True)
class Setting:
    """What all rows of a run share."""

    theme: str
    device: str
    threads: int
    commit: str
    date: str

    @classmethod
    def here(cls, theme: str, threads: int, device: str | None = None) -> Setting:
        return cls(theme, device or cpu_name(), threads, commit(), date.today().isoformat())

    def row(self, case: str, provider: str, quantity: str, unit: str, values: Sequence[float], versions: str) -> Row:
        low, middle, high = (float(v) for v in np.percentile(values, (20, 50, 80)))
        return Row(
            case=case, provider=provider, quantity=quantity, unit=unit, median=middle, p20=low, p80=high,
            rounds=len(values), versions=versions, **asdict(self),
        )  # fmt: skip


def interleave(
    providers: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int, warmup: int = 1
) -> dict[str, dict[str, list[float]]]:
    """Run the providers in turn, so that a busy machine slows all alike: ``{provider: {quantity: values}}``.

    Each call returns its own measurements; the order is turned by one every round, and ``warmup`` rounds are dropped.
    """
    names = list(providers)
    values: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            for quantity, value in providers[name]().items():
                if number >= 0:
                    values[name].setdefault(quantity, []).append(value)
    return values


def record(rows: Sequence[Row], folder: Path = RESULTS) -> list[Path]:
    """Write rows into ``<theme>.csv``, replacing those with the same key; returns the files."""
    written = []
    for theme in dict.fromkeys(row.theme for row in rows):
        path = folder / f"{theme}.csv"
        fresh = {row.key: asdict(row) for row in rows if row.theme == theme}
        held = read(path) if path.exists() else []
        lines = [line for line in held if tuple(line[name] for name in KEY) not in fresh] + list(fresh.values())
        text = io.StringIO()
        writer = csv.DictWriter(text, list(Row.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines)
        write_atomically(path, text.getvalue())
        written.append(path)
    return written


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[Row], base: str) -> str:
    """One line a row, with the ratio of its median to that of the provider ``base`` in the same case."""
    medians = {(row.case, row.provider, row.quantity): row.median for row in rows}
    lines = [("case", "provider", "quantity", "median", "p20", "p80", "unit", f"/ {base}")]
    for row in rows:
        reference = medians.get((row.case, base, row.quantity))
        ratio = f"{row.median / reference:.2f}" if reference else ""
        numbers = (f"{value:.4g}" for value in (row.median, row.p20, row.p80))
        lines.append((row.case, row.provider, row.quantity, *numbers, row.unit, ratio))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def verdicts(rows: Sequence[Row], targets: Sequence[Target]) -> list[str]:
    """A line for each target and case that was measured."""
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        medians = {(row.provider, row.quantity): row.median for row in rows if row.case == case}
        for target in targets:
            ours, base = (medians.get((p, target.quantity)) for p in (target.provider, target.base))
            if ours is None or base is None:
                continue
            word = "met" if ours <= target.factor * base else "MISSED"
            lines.append(
                f"{word}: {case}: {target.quantity} of {target.provider} is {ours / base:.3f} x {target.base}, "
                f"target at most {target.factor:g}"
            )
    return lines


def versions(*packages: str) -> str:
    """``python 3.11.7 torch 2.13.0 ...`` for the interpreter and the packages named."""
    return " ".join(
        [f"python {platform.python_version()}", *(f"{p} {importlib.metadata.version(p)}" for p in packages)]
    )


def cpu_name() -> str:
    """The processor's model name and the number of cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def commit() -> str:
    """Short hash of HEAD, with ``-dirty`` when anything but results differs from it; ``unknown`` outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        return head + ("-dirty" if git("status", "--porcelain", "--", ".", ":!benchmarks/results") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
