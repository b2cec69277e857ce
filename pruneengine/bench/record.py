"""Results files: measured values as rows with median, 20th and 80th percentile, in one CSV per theme."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np

from pruneengine.bench.environment import RESULTS, commit, cpu_name
from pruneengine.common.errors import PruneengineError
from pruneengine.common.files import write_atomically

KEY = ("theme", "case", "provider", "quantity", "device", "threads", "versions", "commit", "date")


class GateError(PruneengineError):
    """A provider computes a wrong result, so that no result of its theme may be reported."""


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
        """Values of the columns :data:`KEY`, which identify a row."""
        return tuple(str(getattr(self, name)) for name in KEY)


@dataclass(frozen=True)
class Setting:
    """Values that all rows of a run share."""

    theme: str
    device: str
    threads: int
    commit: str
    date: str

    @classmethod
    def here(cls, theme: str, threads: int, device: str | None = None) -> Setting:
        """Return the setting of this machine, commit and day; the device is the processor by default."""
        return cls(theme, device or cpu_name(), threads, commit(), date.today().isoformat())

    def row(self, case: str, provider: str, quantity: str, unit: str, values: Sequence[float], versions: str) -> Row:
        """Return the row that summarises the values of one quantity."""
        low, middle, high = (float(v) for v in np.percentile(values, (20, 50, 80)))
        return Row(
            case=case, provider=provider, quantity=quantity, unit=unit, median=middle, p20=low, p80=high,
            rounds=len(values), versions=versions, **asdict(self),
        )  # fmt: skip


def record(rows: Sequence[Row], folder: Path = RESULTS) -> list[Path]:
    """Write rows into ``<theme>.csv``, replacing those with the same key; return the files."""
    written = []
    for theme in dict.fromkeys(row.theme for row in rows):
        path = folder / f"{theme}.csv"
        fresh = {row.key: asdict(row) for row in rows if row.theme == theme}
        stored = read(path) if path.exists() else []
        lines = [line for line in stored if tuple(line[name] for name in KEY) not in fresh] + list(fresh.values())
        columns = list(next(iter(fresh.values())))
        write_lines(path, lines, columns)
        written.append(path)
    return written


def write_lines(path: Path, lines: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write lines as a CSV, floats to six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines)
    write_atomically(path, text.getvalue())


def read(path: Path) -> list[dict[str, str]]:
    """Read the lines of a CSV by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
