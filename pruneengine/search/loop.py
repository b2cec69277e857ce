"""Loop of trials that both searches share: ask, evaluate and tell until the study has its trials."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pruneengine.common.progress import track
from pruneengine.search.study import ask, at_work, counted, fail_abandoned

if TYPE_CHECKING:
    import optuna


class LoopConfig(Protocol):
    """Options of a search that its loop reads."""

    @property
    def trials(self) -> int:
        """Number of trials to draw."""
        ...


@dataclass
class TrialLoop(ABC):
    """Trials of one study; a subclass says what a trial does.

    A loop is a dataclass, so that a worker process can be sent a copy with ``study=None`` and reopen the study itself.

    Attributes:
        study: holds everything that a trial leaves; several processes may share it.
        config: of the search.
    """

    study: optuna.Study
    config: LoopConfig
    _asked: list[optuna.trial.Trial] = field(default_factory=list, init=False, repr=False)

    @property
    def together(self) -> int:
        """Number of trials that are evaluated together."""
        return 1

    @property
    def over(self) -> bool:
        """True where the search ends before its last trial."""
        return False

    @abstractmethod
    def prepare(self) -> None:
        """Set up the study, and import what the first trial would otherwise wait for."""

    @abstractmethod
    def run_trials(self, count: int) -> None:
        """Draw ``count`` trials by :meth:`ask`, evaluate them and tell the study."""

    def run(self, deadline: float | None = None, workers: int = 1, go_on: Callable[[], bool] = lambda: True) -> None:
        """Run trials until the study counts ``config.trials``, or the search is :attr:`over`.

        An interrupted trial is marked as failed; trials that were told stay.

        Args:
            deadline: value of :func:`time.monotonic` after which no trial begins; None for no limit.
            workers: number of processes that share the study, for the estimate of the time left.
            go_on: asked before every trial; no further trial begins once it answers False.
        """
        self.prepare()
        fail_abandoned(self.study)
        remaining = self.config.trials - counted(self.study)
        with at_work(self.study):
            for count in track(self._counts(deadline, go_on), "search", -(-remaining // (self.together * workers))):
                self._step(count)

    def ask(self, sampler: optuna.samplers.BaseSampler) -> optuna.trial.Trial:
        """Return the next trial, drawn by ``sampler``; it is failed where the step ends without telling it."""
        self.study.sampler = sampler
        trial = ask(self.study)
        self._asked.append(trial)
        return trial

    def _counts(self, deadline: float | None, go_on: Callable[[], bool]) -> Iterator[int]:
        """Yield the number of trials to draw next, while any are missing; other workers draw from the same study."""
        while (remaining := self.config.trials - counted(self.study)) > 0 and not self.over:
            if not go_on() or (deadline is not None and time.monotonic() >= deadline):
                return
            yield min(remaining, self.together)

    def _step(self, count: int) -> None:
        import optuna

        self._asked = []
        try:
            self.run_trials(count)
        except optuna.exceptions.UpdateFinishedTrialError:
            # Another machine took one for lost, and failed it: those drawn with it are drawn again, too.
            self._fail_unfinished()
        except BaseException:
            self._fail_unfinished()
            raise

    def _fail_unfinished(self) -> None:
        import optuna

        for trial in self._asked:
            if not self.study.get_trials(deepcopy=False)[trial.number].state.is_finished():
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
