"""What the trials of a search over allocation functions found, read from their study once each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruneengine.search.dsa.evolution import GENES, Member, function_of
from pruneengine.sparse.functions.function import Function

if TYPE_CHECKING:
    import optuna

# What a trial leaves in the study, in one entry.
FOUND = "found"
# Why a trial has no value whose allocation was run, and ruined the model.
NOT_FINITE = "the loss under its allocation is not finite"


@dataclass(frozen=True)
class KnownTrial:
    """The first trial of an allocation.

    Attributes:
        losses: above the dense model's, of every segment that was run, nats.
        complete: whether these are all segments.
        estimate: their mean; of an allocation that was stopped, the best one's mean at that time and the mean
            difference to it.
    """

    number: int
    function: Function
    levels: tuple[int, ...]
    losses: tuple[float, ...]
    complete: bool
    estimate: float


class TrialHistory:
    """All finished trials of a study.

    A sampler, or a stop, that looked at all of them before every trial would take longest near the end.

    Attributes:
        known: by levels, in the order in which they were first evaluated.
        ruined: levels under which the loss is not finite.
        drawn: the genes of all trials.
        best: the best complete allocation of them; since: trials after it, or all where there is none.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], KnownTrial] = {}
        self.ruined: set[tuple[int, ...]] = set()
        self.drawn: set[tuple] = set()
        self.since = 0
        self.best: KnownTrial | None = None
        self._first, self._read = 0, set()

    def update(self, study: optuna.Study) -> TrialHistory:
        """Read the trials that were finished since the last time."""
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
        """The best allocations, best first. Those that were stopped early count by their estimates: nearly all are."""
        return sorted(self.known.values(), key=lambda known: (known.estimate, known.number))[:size]

    def population(self, size: int) -> list[Member]:
        """The functions of the best allocations, best first."""
        return [Member(known.function, known.estimate) for known in self.ranked(size)]

    def _add(self, trial: optuna.trial.FrozenTrial) -> None:
        self.since += 1
        self.drawn.add(tuple(trial.params.get(gene) for gene in GENES))
        found: dict[str, Any] | None = trial.user_attrs.get(FOUND)
        if found is None or found["origin"] == "repeat":
            return
        if found["estimate"] is None:
            self.ruined.add(tuple(found["levels"]))
            return
        known = KnownTrial(
            trial.number, function_of(trial.params), tuple(found["levels"]), tuple(found["losses"]),
            trial.state.name == "COMPLETE", found["estimate"],
        )  # fmt: skip
        self.known.setdefault(known.levels, known)
        if known.complete and (self.best is None or known.estimate < self.best.estimate):
            self.best, self.since = known, 0
