"""Cells of the HyWIA study: their values, their measurement and their files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from benchmarks.common.kept import digest, keep, read_kept
from pruneengine import PruneConfig, Statistics, calibrate, find_groups, perplexity
from pruneengine.bench.environment import commit
from pruneengine.common.files import write_atomically
from pruneengine.data.windows import Samples
from pruneengine.model import Structure, model_fingerprint
from pruneengine.report.values.blends import blends
from pruneengine.structured.apply import mask
from pruneengine.structured.prune import decide
from pruneengine.structured.scores.hywia import FUSIONS, HyWIA, fuse
from pruneengine.structured.scores.hywia_attention import LearnedAttention
from pruneengine.structured.scores.score import score

QUANTITIES = ("squares", "signed", "abs_mean", "fisher", "mix")
LLM_PRUNER = ("vectorize", "param_first", "param_second", "param_mix")
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in LLM_PRUNER},
    **{f"blend {blend}": {"method": "hywia", "hywia_blend": blend} for blend in (0.25, 0.5, 0.75)},
    **{f"hywia {variant}": {"method": "hywia", "hywia_variant": variant} for variant in "abc"},
    # Over 1,536 channels the products of variant a are large enough to pick one score outright; this undoes it.
    "hywia a, T 40": {"method": "hywia", "hywia_variant": "a", "hywia_temperature": 40.0},
}
SHAPES = {
    "uniform": {"shape": "uniform", "allocation": "uniform"},
    "per-layer": {"shape": "per-layer", "allocation": "global"},
    "unstructured": {"shape": "per-layer", "allocation": "unstructured"},
}
DENSE = "dense"


@dataclass(frozen=True)
class Cell:
    """One perplexity; of the dense model when ``method`` is :data:`DENSE`."""

    method: str
    ratio: float = 0.0
    shape: str = ""
    seed: int = 0

    def __str__(self) -> str:
        return DENSE if self.method == DENSE else f"{self.method}, {self.ratio:.0%} {self.shape}, seed {self.seed}"


def cells(seeds: Sequence[int], ratios: Sequence[float], shapes: Sequence[str], methods: Sequence[str]) -> list[Cell]:
    """All of them, in the order in which they are measured: a seed's cells together, as they share statistics."""
    grid = [Cell(m, ratio, shape, seed) for seed in seeds for ratio in ratios for shape in shapes for m in methods]
    return [Cell(DENSE), *grid]


@dataclass
class Study:
    """A model, its texts, and the folder that keeps what was measured.

    Attributes:
        samples: per seed; the last ``held_out`` of each are kept from the statistics, and only variant c reads them.
        windows: of the perplexity.
        cache: folder of the statistics (a file a seed) and the results (a file a cell).
    """

    model: nn.Module
    samples: dict[int, Samples]
    windows: Samples
    cache: Path
    held_out: int = 8
    steps: int = 40
    round_to: int | None = None
    structure: Structure = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.structure = find_groups(self.model)
        self.fingerprint = model_fingerprint(self.model)
        self._held: tuple[int, Statistics] | None = None

    def config(self, cell: Cell) -> PruneConfig:
        method = METHODS[cell.method]
        fit = {"hywia_samples": self.held_out, "hywia_steps": self.steps} if method.get("hywia_variant") == "c" else {}
        return PruneConfig(
            ratio=cell.ratio, seed=cell.seed, round_to=self.round_to, **fit, **method, **SHAPES[cell.shape]
        )

    def path(self, cell: Cell) -> Path:
        """A name that changes with anything a result depends on but the code, whose commit the result carries."""
        made_by: dict[str, Any] = {"model": self.fingerprint, "evaluation": self.windows.hash}
        if cell.method != DENSE:
            config = self.config(cell)
            used = config.to_dict()
            if not config.holds_out:
                del used["hywia_samples"], used["hywia_steps"]
            made_by |= {"calibration": self.samples[cell.seed].hash, "held out": self.held_out, "config": used}
        return self.cache / f"{cell.method.replace(',', '').replace(' ', '-')}-{digest(made_by)}.json"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What an earlier run found, if it did."""
        return read_kept(self.path(cell))

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measure a cell and keep it."""
        start = time.perf_counter()
        found: dict[str, Any] = {"cell": asdict(cell), "commit": commit()}
        if cell.method == DENSE:
            measured = perplexity(self.model, self.windows)
        else:
            config, statistics = self.config(cell), self.statistics(cell.seed)
            report = decide(self.model, self.structure, self.samples[cell.seed], config, statistics=statistics)
            with mask(self.model, report.plan, structure=self.structure):
                measured = perplexity(self.model, self.windows)
            found |= {"reached": report.plan.reached, "stages": report.seconds}
            if report.scores.blend is not None:
                found["blends"] = [asdict(row) for row in blends(report.scores, report.plan)]
            if report.fit is not None:
                found["fit"] = {"losses": report.fit.losses, "checks": report.fit.checks, "best": report.fit.best}
        found |= {"perplexity": measured.perplexity, "nll": measured.nll, "per window": measured.per_window.tolist()}
        found |= {"tokens": measured.tokens, "seconds": time.perf_counter() - start}
        keep(self.path(cell), found)
        return found

    def statistics(self, seed: int) -> Statistics:
        """All quantities of a seed's samples, from one pass, kept in the folder."""
        if self._held is None or self._held[0] != seed:
            samples = self.samples[seed].tokens[: -self.held_out]
            path = self.cache / f"statistics-{self.samples[seed].hash[:12]}-{len(samples)}.safetensors"
            if path.exists():
                found = Statistics.load(path).check(model=self.fingerprint)
            else:
                start = time.perf_counter()
                found = calibrate(self.model, samples, QUANTITIES, structure=self.structure)
                found.save(path)
                write_atomically(path.with_suffix(".json"), json.dumps({"seconds": time.perf_counter() - start}))
            self._held = (seed, found)
        return self._held[1]

    def pass_seconds(self) -> Iterator[float]:
        """How long each statistics pass took."""
        for path in sorted(self.cache.glob("statistics-*.json")):
            yield json.loads(path.read_text())["seconds"]

    def fusion_seconds(self, seed: int, variant: str, repeats: int = 5) -> float:
        """The median time that blending all groups takes, once both scores are there."""
        held, fusion = self.statistics(seed), FUSIONS["hywia"]
        names = (fusion.coarse, fusion.fine)
        parts = [score(self.model, name, held, structure=self.structure).groups for name in names]
        options = HyWIA(variant, attention=LearnedAttention.initial() if variant == "c" else None)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            fuse(*parts, self.structure.groups, self.structure.num_layers, options)
            times.append(time.perf_counter() - start)
        return median(times)
