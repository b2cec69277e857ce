"""Options of a search for an allocation function, validated where they are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.common.validation import from_known, require_choice, require_number, require_whole, require_within
from pruneengine.search.dsa.evolution import SPREADS
from pruneengine.sparse.config import MODES, SparseConfig
from pruneengine.sparse.functions.allocation import MOST
from pruneengine.sparse.pattern import Pattern

DSA_SAMPLERS = ("evolution", "random")
PRUNERS = ("wanda", "magnitude", "sparsegpt")


@dataclass(frozen=True)
class DsaConfig:
    """A search after DSA (Li, Dong et al., NeurIPS 2024): a function from a layer's scores to its sparsity.

    The paper names evolution by crossover and mutation and gives no rates, sizes or selection; these are ours.

    Attributes:
        sparsity: in (0, 0.99]: fraction of the weights of all linears in decoder layers, but for those of ``ignore``,
            that become zero; None where an N:M pattern says it.
        pruner: "wanda", "magnitude" or "sparsegpt": the method that decides which weights of a layer become zero.
            Candidates of SparseGPT are tried with Wanda's masks, and pruned by SparseGPT in the end.
        pattern: "unstructured" or "N:M" (N kept of every M; M is common and N each layer's own).
        trials: number of functions to draw; many give an allocation that is known by then and cost nothing.
        population: number of the best allocations that are kept as parents.
        tournament: number of kept allocations drawn for each parent of a child; the best one becomes it.
        crossover: probability that a child has two parents.
        mutation: probability that a stage of a child is drawn anew.
        sampler: "evolution", or "random" for the same loop without parents.
        plateau: number of trials without a better one after which the search ends; None for never.
        stop: p-value of the Wilcoxon signed-rank test, segment by segment, at which a candidate that is worse than the
            best one is stopped; None evaluates all to the end.
        seed: random seed of the texts and of the sampler.
        search_text: text of the objective.
        seqlen: tokens per window of that text.
        windows: number of windows, held-out ones included.
        held_out: share of the windows that only finalists see.
        segment: tokens, about, whose mean loss is one observation of the test.
        calibration, nsamples, calibration_seqlen: text of the statistics (:func:`load_samples`).
        batch_size: calibration samples per forward pass.
        finalists: number of the best allocations by fast losses that are pruned in full and compared with the fixed
            ones.
        correlate: number of allocations, spread over the range of fast losses and finalists included, for the rank
            correlation of fast and full losses; 0 leaves it out. All are pruned in full, and so any of them may win.
        mode: mode of the final prunes (:class:`pruneengine.sparse.config.SparseConfig`).
        ignore: linears that stay dense and that no score or trial counts, likewise.
    """

    sparsity: float | None = None
    pruner: str = "wanda"
    pattern: str = "unstructured"
    trials: int = 2000
    population: int = 50
    tournament: int = 5
    crossover: float = 0.5
    mutation: float = 0.3
    sampler: str = "evolution"
    plateau: int | None = 300
    stop: float | None = 0.1
    seed: int = 0
    search_text: str = "builtin-eval"
    seqlen: int = 128
    windows: int = 50
    held_out: float = 0.2
    segment: int = 16
    calibration: str = "builtin"
    nsamples: int = 32
    calibration_seqlen: int = 128
    batch_size: int = 8
    finalists: int = 5
    correlate: int = 20
    mode: str = "sequential"
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_choice("pruner", self.pruner, PRUNERS)
        require_choice("sampler", self.sampler, DSA_SAMPLERS)
        require_choice("mode", self.mode, MODES)
        whole = {
            "trials": 1, "population": 2, "tournament": 1, "seqlen": 2, "windows": 2, "segment": 1, "nsamples": 1,
            "calibration_seqlen": 1, "batch_size": 1, "finalists": 1, "correlate": 0, "seed": 0,
        }  # fmt: skip
        for name, least in whole.items():
            require_whole(name, getattr(self, name), least)
        if self.plateau is not None:
            require_whole("plateau", self.plateau, 1)
        for name in ("crossover", "mutation", "held_out"):
            require_within(name, getattr(self, name), 0, 1)
        for name in ("search_text", "calibration"):
            if not isinstance(getattr(self, name), str):
                raise InputTypeError(f"{name} must be a text's name, got {getattr(self, name)!r}")
        if self.stop is not None:
            require_number("stop", self.stop)
        if self.stop is not None and not 0 < self.stop < 1:
            raise InputError(f"stop is a p-value, expected in (0, 1) or none, got {self.stop}")
        if 0 < self.correlate < 3:
            raise InputError(f"a rank correlation needs at least 3 allocations, or 0 for none, got {self.correlate}")
        if not 0 < self.held_out_windows < self.windows:
            raise InputError(
                f"held_out {self.held_out:g} of {self.windows} windows is {self.held_out_windows}: expected at least "
                "one window to hold out and one to search on"
            )
        pruning = self.sparse_config
        # A prune's config has a sparsity, its own or its pattern's.
        assert pruning.sparsity is not None
        object.__setattr__(self, "sparsity", pruning.sparsity)
        object.__setattr__(self, "ignore", pruning.ignore)
        if not 0 < pruning.sparsity <= MOST:
            raise InputError(
                f"sparsity {pruning.sparsity:g} leaves nothing to allocate: expected a fraction in (0, {MOST}]"
            )
        widest, m = 2 * max(SPREADS), self.parsed_pattern.m
        if m is not None and widest * m < 1:
            raise InputError(
                f"pattern {self.pattern} leaves nothing to allocate: sparsities of functions span at most {widest:g}, "
                f"less than one of {m} weights; expected groups of at least {math.ceil(1 / widest)}, such as 4:8"
            )

    @property
    def held_out_windows(self) -> int:
        """Number of windows that only finalists see."""
        return round(self.held_out * self.windows)

    @property
    def search_windows(self) -> int:
        """Number of windows of the fast fitness."""
        return self.windows - self.held_out_windows

    @property
    def sparse_config(self) -> SparseConfig:
        """Options of the final prunes, except for the allocation."""
        return SparseConfig(
            method=self.pruner, sparsity=self.sparsity, pattern=self.pattern, mode=self.mode, ignore=self.ignore,
            calibration=self.calibration, nsamples=self.nsamples, seqlen=self.calibration_seqlen,
            batch_size=self.batch_size, seed=self.seed,
        )  # fmt: skip

    @property
    def parsed_pattern(self) -> Pattern:
        """The pattern as a value."""
        return Pattern.parse(self.pattern)

    @property
    def identity(self) -> dict[str, Any]:
        """Options that two runs of one study must share: those that decide a trial's function and losses."""
        # Texts are compared by their tokens; the others say how long the search takes, or act after the trials.
        apart = {
            "trials", "plateau", "calibration", "search_text", "batch_size", "finalists", "correlate", "mode",
        }  # fmt: skip
        # Studies that are older than this option hold none.
        if not self.ignore:
            apart.add("ignore")
        return {name: value for name, value in self.to_dict().items() if name not in apart}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a recipe holds them under ``search``."""
        return dataclasses.asdict(self) | {"ignore": list(self.ignore)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DsaConfig:
        """Return the config of :meth:`to_dict`'s values; raise ValueError for unknown keys, with the known ones."""
        return from_known(cls, values)
