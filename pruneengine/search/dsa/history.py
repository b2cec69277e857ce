"""History of a search over allocation functions: its trials, read from the study once each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruneengine.search.dsa.evolution import GENES, Member, function_of
from pruneengine.sparse.functions.function import Function

if TYPE_CHECKING:
    import optuna

# Key of the entry that a trial leaves in the study.
FOUND = "found"
# Reason why a trial whose allocation was run and ruined the model has no value.
NOT_FINITE = "the loss under its allocation is not finite"


@dataclass(frozen=True)
class KnownTrial:
    """The first trial of an allocation.

    Attributes:
        number: position of the trial in the study.
        function: function of the trial.
        levels: levels of its allocation, one per decoder layer.
        losses: loss above the dense model's of every segment that was run, nats.
        complete: whether all segments were run.
        estimate: mean of the losses, nats; for an allocation that was stopped, the best allocation's mean at that time
            plus the mean difference to it.
    """

    number: int
    function: Function
    levels: tuple[int, ...]
    losses: tuple[float, ...]
    complete: bool
    estimate: float


class TrialHistory:
    """All finished trials of a study.

    They are read once: a sampler that read all trials before every trial would take longest near the end.

    Attributes:
        known: trials by levels, in the order of their first evaluation.
        ruined: levels under which the loss is not finite.
        drawn: genes of all trials.
        best: the trial of the best complete allocation.
        since: number of trials after the best one, or of all where there is none.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], KnownTrial] = {}
        self.ruined: set[tuple[int, ...]] = set()
        self.drawn: set[tuple[Any, ...]] = set()
        self.since = 0
        self.best: KnownTrial | None = None
        # Trials before the first one are read, and of the later ones those in the set.
        self._first = 0
        self._read: set[int] = set()

    def update(self, study: optuna.Study) -> TrialHistory:
        """Read the trials that were finished since the last update; return this history."""
        trials = study.get_trials(deepcopy=False)
        for trial in trials[self._first :]:
            if trial.state.is_finished() and trial.number not in self._read:
                self._read.add(trial.number)
                # A failed one was interrupted: its successor draws the same.
                if trial.state.name != "FAIL":
                    self._add(trial)
        while self._first in self._read:
            self._read.discard(self._first)
            self._first += 1
        return self

    def ranked(self, size: int) -> list[KnownTrial]:
        """Return the best ``size`` trials by estimate, best first: nearly all of them were stopped early."""
        return sorted(self.known.values(), key=lambda known: (known.estimate, known.number))[:size]

    def population(self, size: int) -> list[Member]:
        """Return the functions of the best ``size`` allocations, best first."""
        return [Member(known.function, known.estimate) for known in self.ranked(size)]

    def _add(self, trial: optuna.trial.FrozenTrial) -> None:
        self.since += 1
        self.drawn.add(tuple(trial.params.get(gene) for gene in GENES))
        entry: dict[str, Any] | None = trial.user_attrs.get(FOUND)
        if entry is None or entry["origin"] == "repeat":
            return
        if entry["estimate"] is None:
            self.ruined.add(tuple(entry["levels"]))
            return
        known = KnownTrial(
            trial.number, function_of(trial.params), tuple(entry["levels"]), tuple(entry["losses"]),
            trial.state.name == "COMPLETE", entry["estimate"],
        )  # fmt: skip
        self.known.setdefault(known.levels, known)
        if known.complete and (self.best is None or known.estimate < self.best.estimate):
            self.best, self.since = known, 0
