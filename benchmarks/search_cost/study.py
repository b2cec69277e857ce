"""Search in stretches with naive trials between them, kept as they are measured."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import pruneengine
from benchmarks.search_cost.naive import block_losses, naive_trial
from pruneengine.bench.environment import commit, cpu_name
from pruneengine.bench.record import GateError
from pruneengine.common.files import write_atomically
from pruneengine.data.samples import Samples
from pruneengine.model import find_groups, model_fingerprint
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.pool import Pool, collect_pool
from pruneengine.search.adapruner.search import SearchTexts, quantities, search, subset_options
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.kv_groups import legal_heads
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.run import SearchRun
from pruneengine.search.study import ORIGIN, SECONDS, reopen_study

if TYPE_CHECKING:
    import optuna

# Of the loss above the dense model's: a unit of nearly equal score may fall on the other side of the cut.
TOLERANCE = 0.01


@dataclass
class CostStudy:
    """A search whose cost is measured, and the naive trials that it is compared with.

    Attributes:
        whole: all windows of the objective's text; windows: how many of them are timed.
        cache: has a folder for each study, with its journal, the pool's statistics and what was measured.
    """

    model: nn.Module
    texts: SearchTexts
    config: AdaPrunerConfig
    whole: Samples
    windows: int
    cache: Path
    label: str = "cost"
    _chosen: dict[Any, Samples] = field(default_factory=dict, init=False)

    @cached_property
    def name(self) -> str:
        """Of the study: another model, text, configuration, commit or machine measures anew."""
        parts = {
            **self.config.identity, "trials": self.config.trials, "model": model_fingerprint(self.model),
            "texts": [of.hash for of in (*self.texts.pool.values(), self.texts.search, self.texts.held_out)],
            "commit": commit(), "device": cpu_name(), "threads": torch.get_num_threads(),
        }  # fmt: skip
        return f"{self.label}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]}"

    @property
    def folder(self) -> Path:
        return self.cache / self.name

    @property
    def run(self) -> SearchRun:
        return SearchRun(self.name, f"journal:{self.folder / 'study.journal'}", self.folder)

    @property
    def study(self) -> optuna.Study:
        return reopen_study(self.name, self.run.storage)

    @property
    def kept(self) -> dict[str, list[dict[str, Any]]]:
        """What was measured so far: ``stretches`` of the search and ``naive`` trials."""
        path = self.folder / "measured.json"
        return json.loads(path.read_text()) if path.exists() else {"stretches": [], "naive": []}

    def measure(self, naive: int) -> dict[str, list[dict[str, Any]]]:
        """Search in as many stretches as there are naive trials, at least one, each followed by its naive trial.

        Raises:
            GateError: a naive trial has another loss than the search found for the same candidate.
        """
        if not self.kept["stretches"]:
            # A first stretch that was killed would find the statistics and the baselines ready, and time neither.
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        count = max(1, naive)
        for number in range(count):
            begin, end = (self.config.trials * n // count for n in (number, number + 1))
            kept = self.kept
            if len(kept["stretches"]) <= number:
                kept["stretches"].append(self._stretch(end, last=number == count - 1))
                self._keep(kept)
            if number < naive and len(kept["naive"]) <= number:
                kept["naive"].append(self._naive(begin, end))
                self._keep(kept)
        return self.kept

    def _keep(self, kept: dict[str, list[dict[str, Any]]]) -> None:
        write_atomically(self.folder / "measured.json", json.dumps(kept, indent=1))

    def _stretch(self, end: int, last: bool) -> dict[str, Any]:
        """Search until so many trials were drawn; the seconds of its stages, and how many trials those are of.

        Trials of a stretch that was killed are in the study, but the loop's seconds were lost with it.
        """
        before = len(drawn(self.study)) if (self.folder / "study.journal").exists() else 0
        config = replace(self.config, trials=end, finalists=self.config.finalists if last else 1)
        result = search(self.model, self.texts, config, self.run)
        return {"trials": len(drawn(self.study)) - before, "seconds": result.seconds}

    def _naive(self, begin: int, end: int) -> dict[str, Any]:
        """The naive loop on the trial of a stretch whose calibration is nearest to the stretch's mean."""
        space = self._space()
        candidates = {trial.number: space.suggest(_fixed(trial)) for trial in drawn(self.study)[begin:end]}
        trials = {trial.number: trial for trial in drawn(self.study)[begin:end]}
        chosen = typical({n: c for n, c in candidates.items() if trials[n].intermediate_values}, candidates)
        candidate, found = candidates[chosen], trials[chosen].intermediate_values
        part = Samples(self.whole.tokens[: self.windows], self.whole.source[: self.windows])
        timed = naive_trial(
            self.model, candidate, self._chosen[candidate.subset], self.texts.search, self.config, part
        )  # fmt: skip
        above = (timed.losses - self._dense).tolist()
        ours = [found[block] for block in sorted(found)]
        check_same(chosen, above[: len(ours)], ours)
        return {
            "trial": chosen, "seconds": timed.seconds, "losses": above,
            "difference": max(abs(a - b) for a, b in zip(above, ours, strict=False)),
        }  # fmt: skip

    @cached_property
    def _dense(self) -> torch.Tensor:
        return block_losses(self.model, self.texts.search)

    def _space(self) -> Space:
        """The search's space; keeps the samples of its subsets, and not the statistics they are chosen by."""
        structure, config = find_groups(self.model), self.config
        layers = config.layer_range(structure.num_layers)
        pool = self._pool(structure, layers)
        self._chosen = self._chosen or {subset: pool.chosen(subset) for subset in pool.menu}
        uniform = config.shape == "uniform"
        kv_groups = tuple(legal_heads(structure, config.ratio, config.kinds)) if uniform else ()
        return Space(pool.menu, kv_groups, "heads" in config.kinds, len(layers), config.fills)

    def _pool(self, structure: pruneengine.Structure, layers: range) -> Pool:
        """From the file that the search wrote."""
        return collect_pool(
            self.model, self.texts.pool, quantities(), subset_options(self.texts, self.config), structure=structure,
            kinds=self.config.kinds, layers=layers, batch_size=self.config.batch_size, cache=self.folder,
        )  # fmt: skip


def drawn(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that were drawn and not lost, in their order."""
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]


def sampled(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Those that the sampler proposed and that were evaluated, neither repeats nor illegal plans."""
    return [t for t in drawn(study) if ORIGIN not in t.user_attrs and "evaluate" in t.user_attrs.get(SECONDS, {})]


def stages(trial: optuna.trial.FrozenTrial) -> dict[str, float]:
    """Seconds of a trial by stage, and "store": all else between ask and tell, which is the storage's. They add up to
    how long the trial lasted."""
    seconds = dict(trial.user_attrs[SECONDS])
    # A trial's clock starts within its first stage.
    return seconds | {"store": max(0.0, trial.duration.total_seconds() - sum(seconds.values()))}


def work(candidate: Candidate) -> float:
    """Calibration of a candidate in forward passes of a token: a backward pass is two."""
    gradients = candidate.metric.needs - {"sum", "squares"}
    passes = 3 if gradients else 1 if candidate.metric.needs else 0
    return passes * candidate.subset.count * candidate.subset.length


def typical(choices: dict[int, Candidate], everyone: dict[int, Candidate]) -> int:
    """The choice whose calibration is nearest to the mean of everyone's; the first of equals."""
    if not choices:
        raise GateError("no trial of this stretch was evaluated; search for more trials")
    mean = sum(map(work, everyone.values())) / len(everyone)
    return min(choices, key=lambda number: (abs(work(choices[number]) - mean), number))


def check_same(number: int, naive: Sequence[float], ours: Sequence[float]) -> None:
    """The mean losses of one candidate, by the naive loop and by the search, are the same; else GateError."""
    theirs, own = sum(naive) / len(naive), sum(ours) / len(ours)
    if not abs(theirs - own) <= TOLERANCE * abs(own) + 1e-4:
        raise GateError(f"trial {number}: the naive loop's loss is {theirs:.6f} above dense, the search's {own:.6f}")


def _fixed(trial: optuna.trial.FrozenTrial) -> optuna.trial.FixedTrial:
    import optuna

    return optuna.trial.FixedTrial(trial.params)
