"""Searches of the DSA benchmark: one study each, kept, with its winner in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.common.kept import digest, keep, read_kept
from pruneengine.bench.environment import commit
from pruneengine.model import model_fingerprint
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.result import DsaResult
from pruneengine.search.dsa.search import search_dsa
from pruneengine.search.dsa.texts import dsa_texts
from pruneengine.search.run import SearchRun


@dataclass(frozen=True)
class Cell:
    """One search."""

    pruner: str
    sparsity: float
    sampler: str
    seed: int

    def __str__(self) -> str:
        return f"{self.pruner}-{self.sparsity:g}-{self.sampler}-{self.seed}"


@dataclass
class Bench:
    """A model, and the folder that keeps studies and results; ``config`` holds for all cells but what a cell says."""

    model: nn.Module
    tokenizer: Any
    config: DsaConfig
    work: Path
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.fingerprint = model_fingerprint(self.model)

    def configured(self, cell: Cell) -> DsaConfig:
        """Fast and full losses are compared once a pruner and sparsity, in the search by evolution."""
        correlate = 0 if cell.sampler == "random" else self.config.correlate
        return replace(
            self.config, pruner=cell.pruner, sparsity=cell.sparsity, sampler=cell.sampler, seed=cell.seed,
            correlate=correlate,
        )  # fmt: skip

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What an earlier run found, if it did."""
        return read_kept(self._path(cell))

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Search, and keep what was found."""
        config = self.configured(cell)
        texts = dsa_texts(config, self.tokenizer, self.model)
        run = SearchRun(self._name(cell), f"journal:{self.work / f'{self._name(cell)}.journal'}")
        found = values(search_dsa(self.model, texts, config, run, say=print))
        keep(self._path(cell), found)
        return found

    def _path(self, cell: Cell) -> Path:
        return self.work / f"{self._name(cell)}.json"

    def _name(self, cell: Cell) -> str:
        """As in other studies, but for the texts: by the paths that were given, so moved files are searched anew."""
        return f"{cell}-{digest([self.fingerprint, self.configured(cell).to_dict()])}"


def values(result: DsaResult) -> dict[str, Any]:
    """A search as JSON, with the best function it drew (a fixed allocation may have won), the best fast loss by trial,
    and the trials' own time, which survives a stop.
    """
    found = result.to_dict()
    best, history = float("inf"), []
    for trial in result.trials:
        if trial.value is not None and trial.value < best:
            best = trial.value
            history.append([trial.number, best])
    spent = sum(sum(trial.seconds.values()) for trial in result.trials)
    ours = next((each for each in result.finalists if each.entrant.name.startswith("trial")), None)
    if ours is not None:
        above = {"search": ours.full, "held out": ours.held_out}
        named = {"name": ours.entrant.name, "loss above dense": above}
        found["function"] = {"fields": ours.entrant.function.to_dict(), "metadata": result.metadata | named}
    return found | {"history": history, "trials_seconds": spent, "commit": commit()}
