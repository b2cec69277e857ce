"""The loop of a search: propose, decide, evaluate, tell; a trial leaves everything it found in the study."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneengine.common.progress import track
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.decide import CandidatePlanner
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.study import (
    ILLEGAL,
    KV_BYTES,
    MASK,
    ORIGIN,
    SECONDS,
    ask,
    at_work,
    counted,
    fail_abandoned,
    pruner,
    sampler,
)

if TYPE_CHECKING:
    import optuna


@dataclass
class _Running:
    """A trial on its way from ask to tell."""

    trial: optuna.trial.Trial
    candidate: Candidate
    seconds: dict[str, float]
    masked: MaskedPlan | None = None


@dataclass
class TrialLoop:
    """Runs trials of one study until enough were drawn.

    Attributes:
        known: losses per block of masks that were evaluated before, by their digest; baselines put theirs here.
    """

    study: optuna.Study
    space: Space
    decider: CandidatePlanner
    objective: Objective
    config: AdaPrunerConfig
    known: dict[str, list[float]]

    def run(self, deadline: float | None = None, workers: int = 1, wanted: Callable[[], bool] = lambda: True) -> None:
        """Draw, evaluate and tell until the study counts ``config.trials``.

        An interrupted trial is marked as failed; what was told stays.

        Args:
            deadline: no trial is begun once :func:`time.monotonic` passes it.
            workers: how many share the study, for the estimate of the time left.
            wanted: no trial is begun once it answers False.
        """
        self.study.pruner = pruner(self.config.stop)
        fail_abandoned(self.study)
        left = self.config.trials - counted(self.study)
        with at_work(self.study):
            for count in track(self._batches(deadline, wanted), "search", -(-left // (self.config.together * workers))):
                self._step(count)

    def _batches(self, deadline: float | None, wanted: Callable[[], bool]) -> Iterator[int]:
        """How many trials to draw next, as long as there are any; other workers draw from the same study."""
        while (left := self.config.trials - counted(self.study)) > 0:
            if not wanted() or (deadline is not None and time.monotonic() >= deadline):
                return
            yield min(left, self.config.together)

    def _step(self, count: int) -> None:
        import optuna

        running: list[_Running] = []
        try:
            for _ in range(count):
                running.append(self._propose())
            open_ones = [each for each in running if not self._settled(each)]
            if open_ones:
                self._evaluate(open_ones)
        except optuna.exceptions.UpdateFinishedTrialError:
            # Another machine took one for lost, and failed it: those drawn with it are drawn again, too.
            self._fail(running)
        except BaseException:
            self._fail(running)
            raise

    def _fail(self, running: list[_Running]) -> None:
        import optuna

        for each in running:
            if each.trial.number in self._unfinished():
                self.study.tell(each.trial, state=optuna.trial.TrialState.FAIL)

    def _propose(self) -> _Running:
        start = time.perf_counter()
        config = self.config
        self.study.sampler = sampler(config.sampler, config.seed, counted(self.study), config.startup)
        trial = ask(self.study)
        candidate = self.space.suggest(trial)
        return _Running(trial, candidate, {"propose": time.perf_counter() - start})

    def _settled(self, running: _Running) -> bool:
        """Whether the trial is over without an evaluation: no legal plan, or a mask that is known."""
        import optuna

        start = time.perf_counter()
        try:
            running.masked = self.decider.decide(running.candidate)
        except ValueError as reason:
            running.trial.set_user_attr(ILLEGAL, str(reason))
            self.study.tell(running.trial, state=optuna.trial.TrialState.PRUNED)
            return True
        digest = running.masked.digest
        running.seconds["decide"] = time.perf_counter() - start
        running.trial.set_user_attr(MASK, digest)
        running.trial.set_user_attr(KV_BYTES, self.decider.kv_bytes(running.masked.plan))
        losses = self.known.get(digest) or self._known_in_study(digest, running.trial.number)
        if losses is None:
            return False
        for block, loss in enumerate(losses):
            running.trial.report(loss, block)
        running.trial.set_user_attr(ORIGIN, "repeat")
        running.trial.set_user_attr(SECONDS, running.seconds)
        complete = len(losses) == len(self.objective)
        state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
        self.study.tell(running.trial, sum(losses) / len(losses) if complete else None, state=state)
        return True

    def _evaluate(self, running: list[_Running]) -> None:
        import optuna

        told = [0.0] * len(running)

        def stop(position: int, block: int, loss: float) -> bool:
            start = time.perf_counter()
            running[position].trial.report(loss, block)
            over = running[position].trial.should_prune()
            told[position] += time.perf_counter() - start
            return over

        found = self.objective.evaluate([each.masked for each in running], stop)
        for each, evaluation, spent in zip(running, found, told, strict=True):
            each.seconds |= {"evaluate": evaluation.seconds, "report": spent}
            each.trial.set_user_attr(SECONDS, {stage: round(s, 6) for stage, s in each.seconds.items()})
            if evaluation.stopped:
                self.study.tell(each.trial, state=optuna.trial.TrialState.PRUNED)
            else:
                self.study.tell(each.trial, evaluation.mean)
                self.known[each.masked.digest] = evaluation.losses.tolist()

    def _known_in_study(self, digest: str, number: int) -> list[float] | None:
        """Losses of an earlier trial with the same mask, another worker's too."""
        import optuna

        # Not of a failed one: it was interrupted, which says nothing of its mask, and its successor draws the same.
        told = [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]
        for trial in self.study.get_trials(deepcopy=False, states=told):
            if trial.number != number and trial.user_attrs.get(MASK) == digest:
                blocks = trial.intermediate_values
                if blocks and sorted(blocks) == list(range(len(blocks))):
                    return [blocks[b] for b in range(len(blocks))]
        return None

    def _unfinished(self) -> set[int]:
        return {t.number for t in self.study.get_trials(deepcopy=False) if not t.state.is_finished()}
