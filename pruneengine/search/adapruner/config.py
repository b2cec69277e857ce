"""Options of an AdaPruner search, validated where they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruneengine.common.aliases import accept_former_name
from pruneengine.common.errors import InputError
from pruneengine.common.recipes import plain_values
from pruneengine.common.validation import from_known, require_choice, require_whole
from pruneengine.search.adapruner.space.subsets import ALL, Subset
from pruneengine.structured.compensate import COMPENSATIONS
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.plan import SHAPES
from pruneengine.structured.scores.metrics import METRICS

ADAPRUNER_SAMPLERS = ("tpe", "random")
FIXED_METRICS = ("random", "magnitude_l2", "wanda", "vectorize", "param_first", "param_second", "param_mix", "energy")


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
        round_to: number that MLP widths become multiples of; None chooses by the model's size.
        trials: candidates to evaluate, besides the fixed baselines.
        sampler: "tpe" (Bergstra et al. 2011, multivariate) or "random".
        seed: random seed of the pool's text, of the sampler and of random subsets.
        stop: p-value of the Wilcoxon signed-rank test at which a trial that is worse than the best one is stopped; None
            evaluates every trial to the end.
        startup: trials before the sampler learns; they are random, except for the given ones that come first.
        pool: number of calibration samples of each length in the pool.
        calibration: text of the pool (:func:`pruneengine.data.windows.load_samples`).
        lengths, counts, selectors: tokens per sample, numbers of samples and selectors of the subsets that may be drawn
            (:mod:`pruneengine.search.adapruner.space.subsets`), besides the whole pool. counts: None for an eighth, a
            quarter and a half of the pool.
        search_text: text of the objective; its windows are shuffled once, and part of them is held out.
        seqlen: tokens per window of that text.
        windows, held_out: numbers of windows that are searched on and held out.
        baselines: the fixed metrics to beat.
        finalists: number of trials that are compared again on the held-out windows.
        compensate: compensations that the winner may have, chosen on the held-out windows; "none" is always tried.
        batch_size: samples per forward pass of the statistics.
        together: number of candidates that share the objective's forward passes.
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
    baselines: tuple[str, ...] = FIXED_METRICS
    finalists: int = 5
    compensate: tuple[str, ...] = ("none", "least-squares")
    batch_size: int = 8
    together: int = 1

    def __post_init__(self) -> None:
        if self.counts is None:
            require_whole("pool", self.pool, 2)
            counts = dict.fromkeys(max(1, self.pool // part) for part in (8, 4, 2))
            object.__setattr__(self, "counts", tuple(counts))
        object.__setattr__(self, "kinds", _several("kinds", self.kinds, str))
        for name in ("lengths", "counts", "selectors", "baselines", "compensate"):
            kind = int if name in ("lengths", "counts") else str
            object.__setattr__(self, name, _several(name, getattr(self, name), kind))
        object.__setattr__(self, "layers", self.prune_config.layers)  # refuses what a prune would
        if set(self.kinds) - {"heads", "mlp"}:
            raise InputError(f"kinds must be heads, mlp or both in a search, got {','.join(self.kinds)}")
        require_choice("shape", self.shape, SHAPES)
        require_choice("sampler", self.sampler, ADAPRUNER_SAMPLERS)
        for compensation in self.compensate:
            require_choice("compensation", compensation, COMPENSATIONS)
        for method in self.baselines:
            require_choice("baseline", method, METRICS)
        for selector in self.selectors:
            Subset(2, ALL, 1, selector)  # refuses an unknown selector
        whole = ("trials", "startup", "pool", "seqlen", "windows", "held_out", "finalists", "batch_size", "together")
        for name in whole:
            require_whole(name, getattr(self, name), 2 if name == "seqlen" else 1)
        for name, least in (("lengths", 2), ("counts", 1)):
            for number in getattr(self, name):
                require_whole(name, number, least)
        if (largest := max(self.subset_counts)) > self.pool:
            raise InputError(f"counts: a subset of {largest} samples is larger than the pool of {self.pool}")
        if self.pool < 2 and set(self.compensate) - {"none"}:
            chosen = ",".join(self.compensate)
            raise InputError(f"compensate {chosen} needs a pool of at least 2 samples, got {self.pool}")
        if self.stop is not None and not 0 < self.stop < 1:
            raise InputError(f"stop is a p-value, expected in (0, 1) or none, got {self.stop}")
        if self.shape == "uniform" and self.layers is not None:
            raise InputError(f"layers {self.layers[0]}:{self.layers[1]} need shape 'per-layer', got 'uniform'")

    @property
    def subset_counts(self) -> tuple[int, ...]:
        """Numbers of samples of the subsets: ``counts``, which is a tuple once the config is made."""
        assert self.counts is not None
        return self.counts

    @property
    def prune_config(self) -> PruneConfig:
        """The target as options of a prune."""
        return PruneConfig(
            method="magnitude_l1", ratio=self.ratio, kinds=self.kinds, shape=self.shape, layers=self.layers,
            round_to=self.round_to, seed=self.seed,
        )  # fmt: skip

    def layer_range(self, num_layers: int) -> range:
        """Return the layers that may change in a model of ``num_layers`` layers."""
        return self.prune_config.layer_range(num_layers)

    @property
    def identity(self) -> dict[str, Any]:
        """Options that two runs of one study must share: all but those of its length, its end and its batches."""
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
        """Values that removed channels may turn into: zero, and their mean where a bias may hold it."""
        return ("zero", "mean") if "bias" in self.compensate else ("zero",)

    @property
    def structure(self) -> tuple[str, ...]:
        """The former name of :attr:`kinds`, until the next release."""
        return self.kinds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a recipe holds them under ``search``."""
        # Recipes and studies of all versions have the kinds under their former name.
        return {"structure" if name == "kinds" else name: value for name, value in plain_values(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdaPrunerConfig:
        """Return the config of :meth:`to_dict`'s values; raise ValueError for unknown keys, with the known ones."""
        return from_known(cls, values, former={"structure": "kinds"})


def _several(name: str, value: Any, kind: type[int] | type[str]) -> tuple[int | str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(kind(part) for part in parts)
    except (TypeError, ValueError):
        what = "whole numbers" if kind is int else "names"
        raise InputError(f"{name} must be {what}, comma separated, got {value!r}") from None
