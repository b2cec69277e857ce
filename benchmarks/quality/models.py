"""Models of the quality study, pruned and recovered; no other file of the study knows how they are made."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.common.kept import digest
from pruneengine import Plan, PruneConfig, Samples, Statistics, calibrate, compact, find_groups
from pruneengine.model import Structure, model_fingerprint
from pruneengine.recovery import RecoverConfig, recover
from pruneengine.structured.prune import decide

DENSE = "dense"
# In the order of their importance to the table; None: its plan comes from a file.
ROWS: dict[str, dict[str, Any] | None] = {
    DENSE: None,
    "param_first": {"method": "param_first"},
    "adapruner": None,
    "hywia": {"method": "hywia"},
    "wanda": {"method": "wanda"},
    "param_mix": {"method": "param_mix"},
    "vectorize": {"method": "vectorize"},
    "param_second": {"method": "param_second"},
    "magnitude_l1": {"method": "magnitude_l1"},
    "random": {"method": "random"},
}
QUANTITIES = ("squares", "signed", "abs_mean", "fisher", "mix")


@dataclass(frozen=True)
class Variant:
    """A model of the study: a row at a ratio, of one seed, as pruned or recovered."""

    row: str
    ratio: float = 0.0
    seed: int = 0
    recovered: bool = False

    def __str__(self) -> str:
        if self.row == DENSE:
            return DENSE
        return f"{self.row} {self.ratio:.0%}, seed {self.seed}" + (", recovered" if self.recovered else "")


@dataclass
class Models:
    """The dense model, and all that others are made from.

    Attributes:
        samples: calibration text by seed; the last ``held_out`` are kept from the statistics, for methods that fit.
        cache: folder of statistics, plans and training checkpoints.
        plans: files of plans made elsewhere, by row and ratio; they stand in for the row's method.
        recovery: options of :class:`pruneengine.recovery.RecoverConfig`, or None for no recovery.
    """

    dense: nn.Module
    tokenizer: Any
    samples: Mapping[int, Samples]
    cache: Path
    held_out: int = 8
    plans: Mapping[tuple[str, float], Path] = field(default_factory=dict)
    recovery: Mapping[str, Any] | None = None
    round_to: int | None = None
    structure: Structure = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.structure = find_groups(self.dense)
        self.fingerprint = model_fingerprint(self.dense)
        self._plans = {key: Plan.load(path).check(self.structure) for key, path in self.plans.items()}
        self._held: tuple[Variant, nn.Module] | None = None

    def exists(self, row: str, ratio: float) -> bool:
        """Whether there is a way to make it."""
        return ROWS.get(row) is not None or (row, ratio) in self.plans

    def seeded(self, variant: Variant) -> bool:
        """Whether another seed makes another model."""
        if variant.row == DENSE:
            return False
        if variant.recovered:
            return True
        given = (variant.row, variant.ratio) in self.plans
        return not given and (variant.row == "random" or bool(self.config(variant).needs))

    def config(self, variant: Variant) -> PruneConfig:
        fit = {"hywia_samples": self.held_out} if variant.row == "hywia" else {}
        return PruneConfig(
            ratio=variant.ratio, seed=variant.seed, round_to=self.round_to, **fit, **ROWS[variant.row]
        )  # fmt: skip

    def made_by(self, variant: Variant) -> dict[str, Any]:
        """All that decides the weights but the code: JSON."""
        made: dict[str, Any] = {"model": self.fingerprint}
        if variant.row == DENSE:
            return made
        if path := self.plans.get((variant.row, variant.ratio)):
            made["plan"] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            config = self.config(variant)
            made["config"] = config.to_dict()
            if config.needs:
                made |= {"calibration": self.samples[variant.seed].hash, "held out": self.held_out}
        if variant.recovered:
            made["recovery"] = recovery_identity(self.recovery, variant.seed)
        return made

    def plan(self, variant: Variant) -> Plan:
        """What is kept: from its file, from the cache, or decided now and cached."""
        if found := self._plans.get((variant.row, variant.ratio)):
            return found
        pruned = Variant(variant.row, variant.ratio, variant.seed)
        path = self.cache / f"plan-{variant.row}-{digest(self.made_by(pruned))}.json"
        if path.exists():
            return Plan.load(path).check(self.structure)
        config = self.config(variant)
        held = self.statistics(variant.seed) if config.needs else None
        samples = self.samples[variant.seed] if config.needs else None
        plan = decide(self.dense, self.structure, samples, config, statistics=held).plan
        plan.save(path)
        return plan

    def get(self, variant: Variant) -> nn.Module:
        """The model; the last one is held, as a variant's cells may follow each other."""
        if variant.row == DENSE:
            return self.dense
        if self._held is None or self._held[0] != variant:
            self._held = None
            model = compact(copy.deepcopy(self.dense), self.plan(variant))
            if variant.recovered:
                work = self.cache / f"recovery-{variant.row}-{digest(self.made_by(variant))}"
                recovered(model, self.tokenizer, self.recovery, variant.seed, work)
            self._held = (variant, model)
        return self._held[1]

    def statistics(self, seed: int) -> Statistics:
        """All quantities of a seed's samples, from one pass, kept in the cache."""
        samples = self.samples[seed].tokens[: -self.held_out]
        path = self.cache / f"statistics-{self.fingerprint}-{self.samples[seed].hash[:12]}-{len(samples)}.safetensors"
        if path.exists():
            return Statistics.load(path).check(model=self.fingerprint)
        found = calibrate(self.dense, samples, QUANTITIES, structure=self.structure)
        found.save(path)
        return found


def recovery_config(options: Mapping[str, Any], seed: int) -> RecoverConfig:
    """The validated recipe of the recovery, the same for all models of a seed."""
    return RecoverConfig(**{**options, "seed": seed})


def recovery_identity(options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The recipe, with the content of its text in place of the path."""
    values = recovery_config(options, seed).to_dict()
    path = Path(values["data"])
    return values | {"data": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else values["data"]}


def recovered(model: nn.Module, tokenizer: Any, options: Mapping[str, Any], seed: int, work: Path) -> None:
    """Train and merge, in place. The work folder stays: a finished run is repeated from it without training."""
    report = recover(model, tokenizer, recovery_config(options, seed), work_dir=work)
    if report.stopped is not None:
        # It would be compared with models that were trained for longer.
        raise RuntimeError(f"the recovery in {work.name} stopped early: {report.stopped}")
