"""Cells of the AdaPruner benchmark: one study each, and the perplexity of its winner on unseen text."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.common.kept import digest, keep, read_kept
from pruneengine import Plan, Samples, find_groups, mask, perplexity
from pruneengine.bench.environment import commit
from pruneengine.common.files import write_atomically
from pruneengine.model import Structure, model_fingerprint
from pruneengine.search.adapruner.config import FIXED_METRICS, AdaPrunerConfig
from pruneengine.search.adapruner.result import SearchResult
from pruneengine.search.adapruner.search import search
from pruneengine.search.adapruner.texts import search_texts
from pruneengine.search.run import SearchRun
from pruneengine.structured.apply import Correction


@dataclass(frozen=True)
class Cell:
    """One search."""

    ratio: float
    shape: str
    seed: int
    sampler: str

    def __str__(self) -> str:
        return f"{self.shape}-{self.ratio:g}-{self.seed}-{self.sampler}"


@dataclass
class Bench:
    """A model, its texts, and the folder that keeps studies and measurements.

    Attributes:
        config: of all cells but what a cell says.
        windows: of the report.
        contenders: fixed metrics of every seed; the rest, and compensation, are measured for seed 0 alone.
    """

    model: nn.Module
    tokenizer: Any
    config: AdaPrunerConfig
    windows: Samples
    work: Path
    contenders: tuple[str, ...] = FIXED_METRICS
    structure: Structure = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.structure = find_groups(self.model)
        self.fingerprint = model_fingerprint(self.model)

    def configured(self, cell: Cell) -> AdaPrunerConfig:
        """A random search needs few fixed metrics and no compensation: its twin by TPE has them."""
        rest = {"baselines": self.contenders, "compensate": ("none",)}
        own = {"baselines": FIXED_METRICS} if cell.seed == 0 else rest
        if cell.sampler == "random":
            own = {"baselines": ("energy",), "compensate": ("none",)}
        return replace(self.config, ratio=cell.ratio, shape=cell.shape, seed=cell.seed, sampler=cell.sampler, **own)

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What an earlier run found, if it did."""
        return read_kept(self._path(cell))

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Search, measure on the report's text, and keep both."""
        config = self.configured(cell)
        texts = search_texts(config, self.tokenizer)
        run = SearchRun(str(cell), f"journal:{self.work / f'{cell.sampler}.journal'}", self.work)
        found = search(self.model, texts, config, run, say=print)
        values = {"search": found.to_dict(), "report": self._report(cell, found), "commit": commit()}
        keep(self._path(cell), values)
        return values

    def dense(self) -> dict[str, float]:
        """The dense model on the report's text."""
        return self._perplexity("dense", None, {})

    def _report(self, cell: Cell, found: SearchResult) -> dict[str, dict[str, float]]:
        """The winner as it is saved, as it was searched, and the best fixed metric as it is."""
        winner = found.winner.name
        rows = {"winner": self._perplexity(f"{cell}, winner", found.plan, found.corrections)}
        if found.corrections:
            rows["winner, not compensated"] = self._perplexity(f"{cell}, plain", found.plan, {})
        if cell.sampler == "tpe":
            fixed = next(f.name for f in found.finalists if f.number is None)
            if fixed != winner:
                rows[fixed] = self._perplexity(f"{cell}, fixed", found.plans[fixed], {})
        return rows

    def _perplexity(self, name: str, plan: Plan | None, corrections: dict[str, Correction]) -> dict[str, float]:
        made_by = [self.fingerprint, self.windows.hash, plan.to_json() if plan else None]
        made_by += [[path, float(c.weight.double().sum())] for path, c in corrections.items() if c.weight is not None]
        path = self.work / f"perplexity-{digest(made_by)}.json"
        if not path.exists():
            print(f"perplexity of {name}", flush=True)
            start = time.perf_counter()
            if plan is None:
                measured = perplexity(self.model, self.windows)
            else:
                with mask(self.model, plan, structure=self.structure, corrections=corrections or None):
                    measured = perplexity(self.model, self.windows)
            values = {"perplexity": measured.perplexity, "nll": measured.nll, "tokens": measured.tokens}
            values |= {"seconds": time.perf_counter() - start, "reached": plan.reached if plan else 0.0}
            write_atomically(path, json.dumps(values))
        return json.loads(path.read_text())

    def _path(self, cell: Cell) -> Path:
        """A name that changes with anything a result depends on but the code, whose commit the result carries."""
        made_by = [self.fingerprint, self.windows.hash, self.configured(cell).to_dict()]
        return self.work / f"{cell}-{digest(made_by)}.json"
