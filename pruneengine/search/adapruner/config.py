"""What to search for, validated where it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruneengine.common.aliases import accept_former_name
from pruneengine.common.recipes import plain_values
from pruneengine.common.validation import from_known, require_choice, require_whole
from pruneengine.search.adapruner.space.subsets import ALL, Subset
from pruneengine.structured.compensate import COMPENSATIONS
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.plan import SHAPES
from pruneengine.structured.scores.metrics import METRICS

SAMPLERS = ("tpe", "random")
FIXED = ("random", "magnitude_l2", "wanda", "vectorize", "param_first", "param_second", "param_mix", "energy")


@accept_former_name("structure", "kinds")
@dataclass(frozen=True)
class AdaPrunerConfig:
    """A search after AdaPruner (Kong et al., AAAI 2025): calibration data and importance metric, chosen jointly.

    The paper's spaces are not published; these are ours, and contain the fixed metrics it is compared with.

    Attributes:
        ratio: in (0, 1): fraction of the prunable parameters of ``kinds`` to remove, over the whole model.
        kinds: "heads", "mlp" or both; whole layers are not searched. Until the next release also by its former name
            ``structure``, which recipes go on holding.
        shape: "uniform" (the KV groups of every layer are searched) or "per-layer" (a smooth curve over depth is).
        layers: first and end (exclusive) decoder layer that may change; None for all.
        round_to: MLP widths become multiples of this; None chooses by the model's size.
        trials: candidates to evaluate, besides the fixed baselines.
        sampler: "tpe" (Bergstra et al. 2011, multivariate) or "random".
        seed: of the pool's text, of the sampler and of random subsets.
        stop: p-value of the Wilcoxon signed-rank test at which a trial that is worse than the best one is stopped; None
            evaluates every trial to the end.
        startup: trials before the sampler learns, at random but for the given ones that come first.
        pool: calibration samples in the pool, of each length.
        calibration: text of the pool (:func:`pruneengine.data.windows.load_samples`).
        lengths, counts, selectors: what subsets may be drawn from it (:mod:`subsets`), besides all
            of it. counts: None for an eighth, a quarter and a half of the pool.
        search_text: text of the objective; its windows are shuffled once, and part of them is held out.
        seqlen: tokens a window of it. windows, held_out: how many are searched on and held out.
        baselines: the fixed metrics to beat.
        finalists: trials that are compared again on the held-out windows.
        compensate: what the winner may be compensated with, besides not at all; chosen on the held-out windows.
        batch_size: samples a forward pass of the statistics.
        together: candidates that share the objective's forward passes.
    """

    ratio: float = 0.2
    kinds: tuple[str, ...] = ("heads", "mlp")
    shape: str = "uniform"
    layers: tuple[int, int] | None = None
    round_to: int | None = None
    trials: int = 100
    sampler: str = "tpe"
    seed: int = 0
    stop: float | None = 0.1
    startup: int = 20
    pool: int = 128
    calibration: str = "builtin"
    lengths: tuple[int, ...] = (128,)
    counts: tuple[int, ...] | None = None
    selectors: tuple[str, ...] = ("random-0", "random-1", "low-loss", "middle-loss", "high-loss", "diverse")
    search_text: str = "builtin-eval"
    seqlen: int = 256
    windows: int = 16
    held_out: int = 16
    baselines: tuple[str, ...] = FIXED
    finalists: int = 5
    compensate: tuple[str, ...] = ("none", "least-squares")
    batch_size: int = 8
    together: int = 1

    def __post_init__(self) -> None:
        if self.counts is None:
            require_whole("pool", self.pool, 2)
            eighths = dict.fromkeys(max(1, self.pool // part) for part in (8, 4, 2))
            object.__setattr__(self, "counts", tuple(eighths))
        object.__setattr__(self, "kinds", _several("structure", self.kinds, str))
        for name in ("lengths", "counts", "selectors", "baselines", "compensate"):
            kind = int if name in ("lengths", "counts") else str
            object.__setattr__(self, name, _several(name, getattr(self, name), kind))
        object.__setattr__(self, "layers", self.prune_config.layers)  # refuses what a prune would
        if set(self.kinds) - {"heads", "mlp"}:
            raise ValueError(f"structure must be heads, mlp or both in a search, got {','.join(self.kinds)}")
        require_choice("shape", self.shape, SHAPES)
        require_choice("sampler", self.sampler, SAMPLERS)
        for each in self.compensate:
            require_choice("compensation", each, COMPENSATIONS)
        for each in self.baselines:
            require_choice("baseline", each, METRICS)
        for each in self.selectors:
            Subset(2, ALL, 1, each)  # refuses an unknown selector
        whole = ("trials", "startup", "pool", "seqlen", "windows", "held_out", "finalists", "batch_size", "together")
        for name in whole:
            require_whole(name, getattr(self, name), 2 if name == "seqlen" else 1)
        for name, least in (("lengths", 2), ("counts", 1)):
            for each in getattr(self, name):
                require_whole(name, each, least)
        if max(self.counts) > self.pool:
            raise ValueError(f"counts: a subset of {max(self.counts)} samples is larger than the pool of {self.pool}")
        if self.pool < 2 and set(self.compensate) - {"none"}:
            chosen = ",".join(self.compensate)
            raise ValueError(f"compensate {chosen} needs a pool of at least 2 samples, got {self.pool}")
        if self.stop is not None and not 0 < self.stop < 1:
            raise ValueError(f"stop is a p-value, expected in (0, 1) or none, got {self.stop}")
        if self.shape == "uniform" and self.layers is not None:
            raise ValueError(f"layers {self.layers[0]}:{self.layers[1]} need shape 'per-layer', got 'uniform'")

    @property
    def prune_config(self) -> PruneConfig:
        """The target as a prune states it."""
        return PruneConfig(
            method="magnitude_l1", ratio=self.ratio, kinds=self.kinds, shape=self.shape, layers=self.layers,
            round_to=self.round_to, seed=self.seed,
        )  # fmt: skip

    def layer_range(self, num_layers: int) -> range:
        """The layers that may change in a model of so many."""
        return self.prune_config.layer_range(num_layers)

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must share to go on with the same study: all but how long and how many at once."""
        # Texts are compared by their tokens.
        apart = {
            "trials",
            "together",
            "batch_size",
            "baselines",
            "finalists",
            "compensate",
            "calibration",
            "search_text",
        }
        return {name: value for name, value in self.to_dict().items() if name not in apart} | {"fills": self.fills}

    @property
    def fills(self) -> tuple[str, ...]:
        """What removed channels may turn into: zero, and their mean where a bias may hold it."""
        return ("zero", "mean") if "bias" in self.compensate else ("zero",)

    @property
    def structure(self) -> tuple[str, ...]:
        """The former name of :attr:`kinds`, until the next release."""
        return self.kinds

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what a recipe holds under ``search``."""
        # Recipes and studies of all versions have the kinds under their former name.
        return {"structure" if name == "kinds" else name: value for name, value in plain_values(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdaPrunerConfig:
        """The inverse of :meth:`to_dict`; ValueError for unknown keys, with the known ones."""
        return from_known(cls, values, former={"structure": "kinds"})


def _several(name: str, value: Any, kind: type) -> tuple:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(kind(part) for part in parts)
    except (TypeError, ValueError):
        what = "whole numbers" if kind is int else "names"
        raise ValueError(f"{name} must be {what}, comma separated, got {value!r}") from None
