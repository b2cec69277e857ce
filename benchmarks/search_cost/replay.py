"""Replay of early stopping over recorded losses of trials that ran to the end.

Optuna itself decides: a throw-away study is asked, told block by block and asked whether to stop, as in a search. The
replay ignores one effect: a sampler that sees stopped trials would have drawn other candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneengine.search.optuna_pruner import pruner
from pruneengine.search.study import MASK, ORIGIN

if TYPE_CHECKING:
    import optuna

# Blocks that the objective runs at once: a trial is stopped between pieces.
PIECE = 2


@dataclass(frozen=True)
class Recorded:
    """A trial that was evaluated to the end.

    Attributes:
        number: of the trial.
        losses: above the dense model's, of every block in their order, nats.
        free: whether the search knew them beforehand, from a fixed metric with the same mask.
    """

    number: int
    losses: tuple[float, ...]
    free: bool = False

    @property
    def value(self) -> float:
        """Mean over the blocks, nats."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Replay:
    """What the rule would have done.

    Attributes:
        stopped: numbers of the trials that it would have stopped.
        blocks, saved: blocks that were evaluated without it, and those of them that it saves.
        winner, winner_stopping: the best trial without it and with it.
        change: loss above the dense model's of the second minus that of the first, as a fraction of the first.
    """

    stopped: tuple[int, ...]
    blocks: int
    saved: int
    winner: int
    winner_stopping: int
    change: float

    @property
    def survives(self) -> bool:
        return self.winner not in self.stopped


def recorded(study: optuna.Study) -> list[Recorded]:
    """The complete trials of a study, in their order, each mask once.

    Raises:
        ValueError: a trial was stopped early, or fewer than two are complete.
    """
    import optuna

    found: dict[str, Recorded] = {}
    states = [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]
    for trial in study.get_trials(deepcopy=False, states=states):
        losses = trial.intermediate_values
        if trial.state == optuna.trial.TrialState.PRUNED and losses:
            raise ValueError(
                f"trial {trial.number} of study {study.study_name!r} was stopped after {len(losses)} blocks; a replay "
                "needs a study whose trials all ran to the end (stop None)"
            )
        if losses:
            repeat = trial.user_attrs.get(ORIGIN) == "repeat"
            mask = trial.user_attrs.get(MASK, str(trial.number))
            in_order = tuple(losses[block] for block in sorted(losses))
            found.setdefault(mask, Recorded(trial.number, in_order, repeat))
    if len(found) < 2:
        raise ValueError(f"study {study.study_name!r} has {len(found)} complete trials with masks of their own, not 2")
    return list(found.values())


def replay(trials: Sequence[Recorded], stop: float, piece: int = PIECE) -> Replay:
    """Run the rule over recorded trials.

    Args:
        trials: in the order in which the rule meets them.
        stop: p-value of the rule, in (0, 1).
        piece: blocks that are evaluated before a trial can be stopped.
    """
    import optuna

    # Optuna tells of every study that it creates.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", pruner=pruner(stop))
    stopped, complete, saved = [], [], 0
    for recording in trials:
        trial = study.ask()
        ran = _run(trial, recording, piece)
        if ran < len(recording.losses):
            stopped.append(recording.number)
            saved += len(recording.losses) - ran
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            complete.append(recording)
            study.tell(trial, recording.value)
    best, found = (min(group, key=lambda r: (r.value, r.number)) for group in (trials, complete))
    blocks = sum(len(recording.losses) for recording in trials if not recording.free)
    change = (found.value - best.value) / abs(best.value) if best.value else 0.0
    return Replay(tuple(stopped), blocks, saved, best.number, found.number, change)


def _run(trial: optuna.trial.Trial, recording: Recorded, piece: int) -> int:
    """Report a trial's losses until it is to be stopped; returns how many blocks that took."""
    for begin in range(0, len(recording.losses), piece):
        over = False
        for block in range(begin, min(begin + piece, len(recording.losses))):
            trial.report(recording.losses[block], block)
            over = (not recording.free and trial.should_prune()) or over
        if over:
            return min(begin + piece, len(recording.losses))
    return len(recording.losses)
