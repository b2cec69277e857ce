"""Cells of the sparse study: their values, their measurement and their files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.kept import digest, keep, read_kept
from pruneengine import Samples, Statistics, calibrate, perplexity
from pruneengine.bench.environment import commit
from pruneengine.model import find_groups, model_fingerprint
from pruneengine.sparse.allocations.allocate import needs_statistics
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.plan import SparsePlan
from pruneengine.sparse.prune import sparsify
from pruneengine.sparse.zeros import count_zeros

DENSE, OURS = "dense", "ours"
HEADLINE = ("uniform", "owl", "dsa", OURS)
ROWS = ("uniform", "global", "er", "er-plus", "owl", "dsa", OURS)
METHODS = ("wanda", "magnitude", "sparsegpt")
Column = tuple[str, float]


@dataclass(frozen=True)
class Cell:
    """One perplexity.

    Attributes:
        row: an allocation, :data:`OURS` for a function file, or :data:`DENSE`.
        full: over all windows of the text, not the first ones alone.
    """

    row: str
    method: str = ""
    sparsity: float = 0.0
    seed: int = 0
    full: bool = False

    def __str__(self) -> str:
        whole = ", whole text" if self.full else ""
        if self.row == DENSE:
            return DENSE + whole
        return f"{self.method} at {self.sparsity:.0%}, {self.row}, seed {self.seed}{whole}"


def columns(methods: Sequence[str], sparsities: Sequence[float]) -> list[Column]:
    """Wanda at every sparsity, the other methods at the first."""
    every = [("wanda", sparsity) for sparsity in sparsities if "wanda" in methods]
    return every + [(method, sparsities[0]) for method in methods if method != "wanda"]


def cells(
    wanted: Sequence[Column],
    rows: Sequence[str],
    seeds: Sequence[int],
    functions: Mapping[Column, Path],
    full_rows: Sequence[str] | None = None,
) -> list[Cell]:
    """All of them, in the order in which they are measured, so that a run that was stopped has whole comparisons.

    A seed before the next; in it the rows that the study is about before the others, each over all columns. Then the
    whole text, where ``full_rows`` names rows. A column without a function file has no row :data:`OURS`.
    """
    first, rest = ([row for row in rows if (row in HEADLINE) == chosen] for chosen in (True, False))

    def grid(names: Sequence[str], seed: int, full: bool = False) -> list[Cell]:
        found = [(column, row) for column in wanted for row in names if row != OURS or column in functions]
        return [Cell(row, *column, seed, full) for column, row in found]

    found = [Cell(DENSE)] + [cell for seed in seeds for names in (first, rest) for cell in grid(names, seed)]
    if full_rows is not None:
        found += [Cell(DENSE, full=True)] + [cell for seed in seeds for cell in grid(full_rows, seed, full=True)]
    return found


@dataclass
class Study:
    """A model, its texts, and the folder that keeps what was measured.

    Attributes:
        model: pruned in place for a cell, and as it was after it.
        samples: of the calibration, by seed.
        windows: of the perplexity, all of them.
        first: how many of the windows a cell reads that is not ``full``.
        cache: folder of the results, a file a cell, and of the dense model's statistics, a file a seed.
        functions: the file of the row :data:`OURS`, by column.
        options: further fields of :class:`SparseConfig`.
        batch_size: windows a forward of the perplexity.
    """

    model: nn.Module
    samples: dict[int, Samples]
    windows: Samples
    first: int
    cache: Path
    functions: dict[Column, Path] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = model_fingerprint(self.model)
        self._dense = {name: value.clone() for name, value in self.model.state_dict().items()}

    def config(self, cell: Cell) -> SparseConfig:
        allocation = str(self._function(cell)) if cell.row == OURS else cell.row
        return SparseConfig(cell.method, cell.sparsity, allocation=allocation, seed=cell.seed, **self.options)

    def path(self, cell: Cell) -> Path:
        """A name that changes with anything a result depends on but the code, whose commit the result carries."""
        made_by: dict[str, Any] = {"model": self.fingerprint, "evaluation": self._windows(cell).hash}
        if cell.row != DENSE:
            made_by |= {"calibration": self.samples[cell.seed].hash, "config": self.config(cell).to_dict()}
            if cell.row == OURS:
                made_by["config"]["allocation"] = hashlib.sha256(self._function(cell).read_bytes()).hexdigest()
        name = "-".join(part for part in (cell.row, cell.method, "full" if cell.full else "") if part)
        return self.cache / f"{name}-{digest(made_by)}.json"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What an earlier run found, if it did."""
        return read_kept(self.path(cell))

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measure a cell and keep it."""
        found: dict[str, Any] = {"cell": asdict(cell), "commit": commit()}
        config = self.config(cell) if cell.row != DENSE else None
        statistics = self.statistics(cell.seed) if config and needs_statistics(config) else None
        start = time.perf_counter()
        with self._restored():
            if config:
                report = sparsify(self.model, self.samples[cell.seed], config, statistics=statistics)
                found |= {"prune seconds": time.perf_counter() - start, "stages": dict(report.seconds)}
                found |= counted(self.model, report.plan) | {"warnings": list(report.warnings)}
            measured = perplexity(self.model, self._windows(cell), batch_size=self.batch_size)
        found |= {"perplexity": measured.perplexity, "nll": measured.nll, "per window": measured.per_window.tolist()}
        found |= {"tokens": measured.tokens, "perplexity seconds": measured.seconds, "dtype": measured.dtype}
        found["seconds"] = time.perf_counter() - start
        keep(self.path(cell), found)
        return found

    def statistics(self, seed: int) -> Statistics:
        """What allocations read of a seed's samples, from one pass over the dense model, kept in the folder."""
        samples = self.samples[seed]
        path = self.cache / f"statistics-{self.fingerprint[:8]}-{samples.hash[:12]}.safetensors"
        if path.exists():
            return Statistics.load(path).check(model=self.fingerprint, data=samples.hash)
        found = calibrate(self.model, samples, ("squares",), structure=find_groups(self.model), kinds=())
        found.save(path)
        return found

    def _windows(self, cell: Cell) -> Samples:
        if cell.full:
            return self.windows
        return Samples(self.windows.tokens[: self.first], self.windows.source[: self.first])

    def _function(self, cell: Cell) -> Path:
        return self.functions[cell.method, cell.sparsity]

    @contextmanager
    def _restored(self):
        """The dense weights again when the block ends: reading the model anew takes longer."""
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    value.copy_(self._dense[name])


def counted(model: nn.Module, plan: SparsePlan) -> dict[str, Any]:
    """The sparsity that was planned, and the one that is found by counting zeros in the weights."""
    found = count_zeros(model, plan)
    matrices, total = len(found.zeros), sum(rows * width for rows, width in plan.shapes.values())
    exact = matrices - len(found.differing)
    return {"planned": plan.reached, "reached": found.total / total, "exact": exact, "matrices": matrices}
