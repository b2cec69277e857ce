"""Result of a search for an allocation function."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.evolution import GENES, function_of
from pruneengine.search.dsa.finals import Correlation, FinalistResult
from pruneengine.search.dsa.history import FOUND, NOT_FINITE
from pruneengine.search.study import ILLEGAL
from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.plan import SparsePlan

if TYPE_CHECKING:
    import optuna

# Words where no trial may be called the best.
NONE_COMPLETE = (
    "no trial's allocation was evaluated to the end: each gave none, one that was known, or one that was plainly worse "
    "than the fixed allocations"
)


@dataclass(frozen=True)
class DsaTrial:
    """One trial as the study keeps it.

    Attributes:
        number: position of the trial in the study.
        state: "complete", "pruned" (stopped early, or no allocation) or "fail".
        function: the function as text.
        value: loss above the dense model's over all segments, nats; None unless complete.
        estimate: estimate of the value, also where the trial was stopped; None where a loss is not finite.
        segments: number of segments that were run.
        levels: 256ths of sparsity, one per decoder layer; 0 for a layer that stays dense.
        params: genes by name.
        seconds: time by stage: propose, score, masks, forward, test.
        origin: "sampler", or "repeat" (its allocation was known).
        illegal: reason why the function gives no allocation, or its allocation has no value.
    """

    number: int
    state: str
    function: str
    value: float | None
    estimate: float | None
    segments: int
    levels: tuple[int, ...]
    params: dict[str, Any]
    seconds: dict[str, float]
    origin: str
    illegal: str | None = None

    @property
    def ruined(self) -> bool:
        """True where there is an allocation, but the loss under it is not finite."""
        return self.illegal == NOT_FINITE

    @property
    def evaluated(self) -> bool:
        """True where the allocation was run, to the end or not."""
        # Of an allocation that ruined the model, trials of older studies say no more than that.
        return self.origin != "repeat" and (self.illegal is None or self.ruined)


def dsa_trials(study: optuna.Study) -> tuple[DsaTrial, ...]:
    """Return all trials whose function was drawn, in their order."""
    return tuple(
        _trial(trial)
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and trial.params.keys() == GENES.keys()
    )


def _trial(trial: optuna.trial.FrozenTrial) -> DsaTrial:
    entry = trial.user_attrs.get(FOUND, {})
    return DsaTrial(
        number=trial.number,
        state=trial.state.name.lower(),
        function=str(function_of(trial.params)),
        value=trial.value if trial.state.name == "COMPLETE" else None,
        estimate=entry.get("estimate"),
        segments=entry.get("segments", len(entry.get("losses", ()))),
        levels=tuple(entry.get("levels", ())),
        params=dict(trial.params),
        seconds=dict(entry.get("seconds", {})),
        origin=entry.get("origin", "sampler"),
        illegal=trial.user_attrs.get(ILLEGAL),
    )


@dataclass(frozen=True)
class DsaResult:
    """Result of a search for an allocation function.

    Attributes:
        config: options of the search.
        winner: the finalist that is best on all windows; a fixed allocation may win.
        finalists: all allocations that were pruned in full, fixed ones and those of the correlation included, best
            first.
        correlation: rank correlation of fast and full losses.
        trials: in the order in which they were drawn.
        dense: loss of the dense model on the "search" and the "held out" windows, nats.
        segments: number of segments of the search windows.
        ended: reason why the search drew no more: "trials" (it had drawn all), "plateau" or "time".
        plateau: the trial after which none was better until the search ended; None where no plateau ended it, or no
            trial was evaluated to the end.
        allocations: sparsities by decoder layer, over the linears that are not ignored, of the finalists by name.
        warnings: warnings to the user.
        seconds: time by stage; of the trials also "trials: <stage>", which add up to "trials".
    """

    config: DsaConfig
    winner: FinalistResult
    finalists: tuple[FinalistResult, ...]
    correlation: Correlation
    trials: tuple[DsaTrial, ...]
    dense: dict[str, float]
    segments: int
    ended: str
    plateau: int | None
    allocations: dict[str, list[float]]
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def function(self) -> Function | None:
        """Function of the winner; None where a fixed allocation that is no function won."""
        return self.winner.entrant.function

    @property
    def plan(self) -> SparsePlan:
        """Plan of the winner."""
        return self.winner.plan

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of trials by their end: repeats, invalid ones, and the ends of the distinct allocations."""
        drawn = [trial for trial in self.trials if trial.state != "fail"]
        evaluated = [trial for trial in drawn if trial.evaluated]
        return {
            "drawn": len(drawn),
            "distinct allocations": len(evaluated),
            "evaluated to the end": sum(trial.state == "complete" for trial in evaluated),
            "stopped early": sum(trial.state == "pruned" and not trial.ruined for trial in evaluated),
            "not finite": sum(trial.ruined for trial in evaluated),
            "repeats": sum(trial.origin == "repeat" for trial in drawn),
            "invalid": sum(trial.illegal is not None and not trial.ruined for trial in drawn),
        }

    @property
    def outcome(self) -> str:
        """Sentence on the end of the search."""
        drawn = f"{self.counts['drawn']} of {self.config.trials} trials"
        if self.ended == "trials":
            return "The search ended with its last trial."
        if self.ended == "time":
            return f"The time limit ended the search after {drawn}."
        if self.plateau is None:
            return f"The search ended early, after {drawn}: {NONE_COMPLETE}."
        return f"The search ended early, after {drawn}: none after trial {self.plateau} was better."

    @property
    def metadata(self) -> dict[str, Any]:
        """Facts about the winning function for its later use."""
        config, winner = self.config, self.winner
        return {
            "pruner": config.pruner,
            "sparsity": config.sparsity,
            "pattern": config.pattern,
            **({"ignore": list(config.ignore)} if config.ignore else {}),
            "name": winner.entrant.name,
            "loss above dense": {"search": winner.full, "held out": winner.held_out},
            "search text": config.search_text,
            "seed": config.seed,
            "trials": self.counts,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as ``report.json`` holds them."""
        config = self.config
        return {
            "format": "pruneengine.search/1",
            "method": "dsa",
            "config": config.to_dict(),
            "sparsity": config.sparsity,
            "pruner": config.pruner,
            "pattern": config.pattern,
            "seed": config.seed,
            "reached": self.plan.reached,
            "best": _row(self.winner) | {"sparsities": self.allocations[self.winner.entrant.name]},
            "finalists": [_row(judged) for judged in self.finalists],
            "allocations": self.allocations,
            "correlation": {
                "spearman": self.correlation.rho,
                "words": self.correlation.in_words(),
                "points": [
                    dict(zip(("name", "fast", "full"), point, strict=True)) for point in self.correlation.points
                ],
            },
            "counts": self.counts,
            "ended": self.ended,
            "outcome": self.outcome,
            "plateau": self.plateau,
            "segments": self.segments,
            "trials": [vars(trial) | {"levels": list(trial.levels)} for trial in self.trials],
            "dense": self.dense,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }


def _row(judged: FinalistResult) -> dict[str, Any]:
    entrant = judged.entrant
    return {
        "name": entrant.name,
        "function": None if entrant.function is None else str(entrant.function),
        "fast": entrant.fast,
        "value": judged.full,
        "held_out": judged.held_out,
        "reached": judged.plan.reached,
    }
