"""How a search job runs, whatever it searches for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pruneengine.common.files import check_writable
from pruneengine.common.progress import Stopwatch
from pruneengine.jobs.checks import check_evaluation, check_out
from pruneengine.jobs.options import CheckpointOptions
from pruneengine.recovery import RecoverConfig
from pruneengine.search.adapruner.search import SearchRun


@dataclass(frozen=True)
class SearchOptions(CheckpointOptions):
    """Everything about a search job but the search itself.

    Attributes:
        study, storage: of the Optuna study; None for "adapruner" in a journal file in the folder ``<out>-search``,
            where the pool's statistics are kept too.
        workers, time_limit: as of :class:`SearchRun`.
        eval_text, eval_seqlen, eval_windows: the text of the report, which the search never sees; None for none.
        recover: train the pruned model before it is saved; None for not.
    """

    eval_text: str | None = None
    eval_seqlen: int = 512
    eval_windows: int | None = 64
    study: str = "adapruner"
    storage: str | None = None
    workers: int = 1
    time_limit: float | None = None
    recover: RecoverConfig | None = None

    @property
    def folder(self) -> Path:
        """Where the search keeps what it can go on from."""
        return self.out.with_name(f"{self.out.name}-search")

    def check(self) -> SearchRun:
        """How the search runs, once all that the options say was found possible.

        Raises:
            ValueError, OSError: as :mod:`pruneengine.jobs.checks`, or a run that cannot be.
        """
        check_out(self.out, self.overwrite, self.source)
        check_evaluation(self.eval_text, self.eval_seqlen, self.eval_windows)
        check_writable(self.folder)
        storage = self.storage or f"journal:{self.folder / 'study.journal'}"
        return SearchRun(self.study, storage, self.folder, self.workers, self.time_limit)


def with_search(clock: Stopwatch, seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of a job and, named as such, those of its search."""
    return clock.seconds | {f"search: {stage}": spent for stage, spent in seconds.items()}
