"""Cells of the quality study: their values, the order of their measurement and their files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.kept import digest, keep, read_kept
from benchmarks.quality.models import DENSE, Models, Variant
from pruneengine import Samples, perplexity
from pruneengine.bench.environment import commit
from pruneengine.evaluation import lm_eval_adapter as harness
from pruneengine.evaluation.results import ModelFacts, TextResult
from pruneengine.evaluation.speed import measure_speed, measure_speed_pair
from pruneengine.evaluation.zero_shot import zero_shot

SPEED, TEXT, RECOVERY = "speed", "text", "recovery"
# At the size of SmolLM2-135M the other tasks hardly tell models apart.
SIGNAL = ("hellaswag", "piqa", "arc_easy")


@dataclass(frozen=True)
class Cell:
    """One column of one model: :data:`SPEED` (with the sizes), :data:`TEXT`, :data:`RECOVERY` or a task."""

    column: str
    variant: Variant

    def __str__(self) -> str:
        return f"{self.column} of {self.variant}"


def carries_signal(task: str) -> bool:
    return any(f"{task}_".startswith(f"{name}_") for name in SIGNAL)


def cells(
    models: Models, rows: Sequence[str], ratios: Sequence[float], seeds: Sequence[int], tasks: Sequence[str]
) -> list[Cell]:
    """All cells in the order in which they are measured, so that a run that is stopped has whole columns.

    A seed before the next; in it sizes and speed, the text, then the tasks that carry signal, recovered models first
    (the headline is theirs), then the other tasks. What no seed changes is measured once.
    """
    after = models.recovery is not None
    stages = [(SPEED, False), (TEXT, False), *([(RECOVERY, True), (TEXT, True)] if after else [])]
    for signal in (True, False):
        chosen = [task for task in tasks if carries_signal(task) == signal]
        stages += [(task, True) for task in chosen if after]
        stages += [(task, False) for task in chosen]
    found: dict[Cell, None] = {}
    for seed in seeds:
        for column, recovered in stages:
            if DENSE in rows and column != RECOVERY:
                found[Cell(column, Variant(DENSE))] = None
            for ratio in ratios:
                for row in rows:
                    variant = Variant(row, ratio, seed, recovered)
                    if row == DENSE or not models.exists(row, ratio):
                        continue
                    if seed != seeds[0] and (column == SPEED or not models.seeded(variant)):
                        continue
                    found[Cell(column, variant)] = None
    return list(found)


@dataclass
class Study:
    """The models, what they are measured on, and the folder that keeps what was measured.

    Attributes:
        windows: of the perplexity; ``text`` is their name.
        include_path: folder of the task files.
        limit: items of each task, from the first on.
        code: the commit that measures, recorded with every cell.
    """

    models: Models
    windows: Samples
    text: str
    include_path: Path | None = None
    limit: int | None = 200
    batch_size: int = 8
    code: str = field(default_factory=commit)
    _managers: dict[str, Any] = field(default_factory=dict)

    def path(self, cell: Cell) -> Path:
        """A name that changes with all that a result depends on but the code, whose commit the result carries."""
        made_by = {"made by": self.models.made_by(cell.variant), "column": cell.column}
        if cell.column == TEXT:
            made_by["windows"] = self.windows.hash
        elif cell.column not in (SPEED, RECOVERY):
            made_by |= {"limit": self.limit, "task file": self._task_file(cell.column)}
            made_by["lm-eval"] = importlib.metadata.version("lm_eval")
        state = "-recovered" if cell.variant.recovered else ""
        return self.models.cache / f"{cell.column}-{cell.variant.row}{state}-{digest(made_by)}.json"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What an earlier run found, if it did."""
        return read_kept(self.path(cell))

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measure a cell and keep it."""
        start = time.perf_counter()
        model = self.models.get(cell.variant)
        found: dict[str, Any] = {"cell": asdict(cell), "commit": self.code, "threads": torch.get_num_threads()}
        if cell.column == SPEED:
            found |= self._speed(cell)
        elif cell.column == TEXT:
            measured = perplexity(model, self.windows)
            found |= asdict(TextResult.of(self.text, self.windows.tokens.shape[1], measured))
        elif cell.column != RECOVERY:
            if cell.column not in self._managers:
                self._managers[cell.column] = harness.find_tasks([cell.column], self.include_path)
            measured = zero_shot(
                model, self.models.tokenizer, [cell.column], limit=self.limit, batch_size=self.batch_size,
                manager=self._managers[cell.column],
            )  # fmt: skip
            found |= asdict(measured[cell.column])
        found["seconds"] = time.perf_counter() - start
        keep(self.path(cell), found)
        return found

    def _speed(self, cell: Cell) -> dict[str, Any]:
        model = self.models.get(cell.variant)
        facts = {"model": asdict(ModelFacts.of(model, str(cell.variant)))}
        if cell.variant.row == DENSE:
            return facts | {"speed": asdict(measure_speed(model))}
        dense, pruned = measure_speed_pair(self.models.dense, model)
        reached = self.models.plan(cell.variant).reached
        return facts | {"speed": asdict(pruned), "dense speed": asdict(dense), "reached": reached}

    def _task_file(self, task: str) -> str | None:
        """The content of a local task file and of the code beside it; lm-eval's own are known by its version."""
        if self.include_path is None or not (self.include_path / f"{task}.yaml").is_file():
            return None
        files = [self.include_path / f"{task}.yaml", *sorted(self.include_path.glob("*.py"))]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
