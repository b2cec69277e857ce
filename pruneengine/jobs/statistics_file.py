"""File in which a job keeps its calibration statistics for later jobs on the same model and text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.files import locked


def keep_statistics(statistics: Statistics, path: Path) -> tuple[Statistics, tuple[str, ...]]:
    """Write statistics into a file, completed by what other jobs put there meanwhile.

    Args:
        statistics: of this job's model and calibration text.
        path: the file; it may exist by now.

    Returns:
        The statistics as they are in the file, and a warning where it cannot be written, or holds those of another
        model or text, which stay.
    """
    try:
        return _merged(statistics, path)
    except OSError as error:
        # The statistics are at hand, and the job can go on without the file.
        return statistics, (f"the statistics could not be kept in {path}: {error}",)


def _merged(statistics: Statistics, path: Path) -> tuple[Statistics, tuple[str, ...]]:
    with locked(path):
        if path.exists():
            kept = Statistics.load(path)
            if (kept.model, kept.data) != (statistics.model, statistics.data):
                line = (
                    f"{path} has come to hold the statistics of another model or text: those of this run are not kept"
                )
                return statistics, (line,)
            loss = statistics.loss if len(statistics.loss) else kept.loss
            statistics = replace(statistics, tensors=kept.tensors | statistics.tensors, loss=loss)
        statistics.save(path)
    return statistics, ()
