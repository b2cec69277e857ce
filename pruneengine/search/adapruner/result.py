"""Result of a search: the winner, its rivals, the trials, and all that a report shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pruneengine.search.adapruner.baselines import Baseline
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.structured.apply import Correction
from pruneengine.structured.plan import Plan


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the study keeps it.

    Attributes:
        number: position of the trial in the study.
        state: "complete", "pruned" (stopped early, or no legal plan), "fail", or "running" in another process.
        value: loss above the dense model's over all search blocks, nats; None unless complete.
        blocks: loss above the dense model's of every block that was evaluated, nats.
        params: the sampler's suggestions by name.
        seconds: by stage: propose, decide, evaluate (the forward passes), report.
        origin: "sampler", "start" (given to the sampler first) or "repeat" (its mask was known).
        illegal: reason why no plan met the target; None where one did.
        kv_bytes: bytes by which the cache of keys and values grows per token, in the model's dtype; None without a
            plan, and in studies of older versions.
    """

    number: int
    state: str
    value: float | None
    blocks: tuple[float, ...]
    params: dict[str, Any]
    seconds: dict[str, float]
    origin: str
    illegal: str | None = None
    kv_bytes: int | None = None


@dataclass(frozen=True)
class Finalist:
    """A trial, or a baseline, that was compared on the held-out windows.

    Attributes:
        name: "trial 17", or a baseline's name.
        value, held_out: loss above the dense model's on the search and the held-out blocks, nats.
        compensation: compensation of its plan.
        compensated: held-out loss above the dense model's with that compensation, nats; None where it was not tried.
    """

    name: str
    value: float
    held_out: float
    compensation: str = "none"
    compensated: float | None = None

    @property
    def number(self) -> int | None:
        """Number of the trial; None for a baseline."""
        kind, _, number = self.name.partition(" ")
        return int(number) if kind == "trial" else None


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        config: options of the search.
        plan: plan of the winner.
        winner: the best finalist.
        candidate: the winner's point of the space; None where a baseline won.
        corrections: corrections of its compensation, for :func:`pruneengine.structured.apply.compact`.
        plans: plans of all finalists, by name.
        finalists: by their mean loss on both texts, best first.
        baselines: all fixed metrics.
        trials: in the order in which they were drawn.
        importance: share of each parameter in what separates good trials (PED-ANOVA), largest first; empty for few
            trials.
        dense: mean loss of the dense model on the "search" and the "held out" blocks, nats.
        seconds: time by stage.
    """

    config: AdaPrunerConfig
    plan: Plan
    winner: Finalist
    candidate: Candidate | None
    corrections: dict[str, Correction]
    plans: dict[str, Plan]
    finalists: tuple[Finalist, ...]
    baselines: tuple[Baseline, ...]
    trials: tuple[TrialRecord, ...]
    importance: dict[str, float]
    dense: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as ``report.json`` holds them."""
        words = self.candidate.in_words() if self.candidate else {"metric": self.winner.name}
        params = self.candidate.to_dict() if self.candidate else {}
        return {
            "format": "pruneengine.search/1",
            "method": "adapruner",
            "config": self.config.to_dict(),
            "ratio": self.config.ratio,
            "shape": self.config.shape,
            "seed": self.config.seed,
            "reached": self.plan.reached,
            "best": vars(self.winner)
            | {"number": self.winner.number, "reached": self.plan.reached, "params": params}
            | words,
            "finalists": [vars(finalist) for finalist in self.finalists],
            "baselines": [baseline.to_dict() for baseline in self.baselines],
            "trials": [vars(trial) for trial in self.trials],
            "importance": self.importance,
            "dense": self.dense,
            "seconds": self.seconds,
        }
