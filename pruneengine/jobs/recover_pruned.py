"""Recovery within the job that prunes: the addition of ``--recover`` to a prune and to a search."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneengine.common.errors import StageError
from pruneengine.common.progress import Stopwatch
from pruneengine.evaluation.measures import Measurer, Measures
from pruneengine.recovery import RecoverConfig, RecoverReport, TokenRows, recover
from pruneengine.report.values.recovery import overlap_warnings, summarise, training_warnings


@dataclass(frozen=True)
class PlannedRecovery:
    """A training that can start once the model is pruned.

    Attributes:
        config: how to train.
        rows: tokens to train on.
        work: folder of the training's checkpoints, from which the same command goes on.
    """

    config: RecoverConfig
    rows: TokenRows
    work: Path

    @property
    def announcement(self) -> str:
        """The line to say at the start of the training."""
        return (
            f"recovering on {len(self.rows)} rows; checkpoints in {self.work}, from which the same command goes on if "
            "interrupted"
        )


@dataclass(frozen=True)
class Recovered:
    """Outcome of training a pruned model.

    Attributes:
        report: of the training.
        after: as the pruned model's measures, with the perplexity of the recovered one.
        numbers: what ``report.json`` holds under "recovery".
        warnings: of the training and of its measures.
    """

    report: RecoverReport
    after: Measures
    numbers: dict[str, Any]
    warnings: tuple[str, ...]


def recover_pruned(
    model: nn.Module,
    tokenizer: Any,
    planned: PlannedRecovery,
    *,
    before: Measures,
    measurer: Measurer,
    store: Callable[[], Path],
    clock: Stopwatch,
    trust_remote_code: bool = False,
) -> Recovered:
    """Train a pruned model in place, and measure it.

    A training that fails costs the recovery alone. One that is interrupted leaves nothing but its checkpoints: the same
    command prunes again and goes on from them, for which the output folder must be free.

    Args:
        model: as pruned.
        tokenizer: its tokenizer.
        planned: the training; its work folder stays.
        before: measures of the pruned model.
        measurer: the one that took ``before``.
        store: saves the pruned model if the training fails, and returns the folder.
        clock: gains "recover", and adds to "evaluate".
        trust_remote_code: as of :func:`pruneengine.recovery.recover`.

    Raises:
        RuntimeError: whatever :func:`pruneengine.recovery.recover` raised, once the pruned model is saved, with where.
    """
    try:
        with clock("recover"):
            report = recover(
                model, tokenizer, planned.config, data=planned.rows, work_dir=planned.work, dtype=measurer.dtype,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
    except Exception as error:
        raise StageError(f"{str(error) or type(error).__name__}. {_stored(store)}") from error
    with clock("evaluate"):
        measured, ruined = measurer.measure_pruned(model)
    after = replace(before, perplexity=measured.perplexity)
    warnings = overlap_warnings(planned.rows, measurer.text) + training_warnings(report) + ruined
    numbers = summarise(report, before.perplexity, after.perplexity, warnings)
    return Recovered(report, after, numbers, warnings)


@contextmanager
def training_kept(work: Path | None) -> Iterator[None]:
    """Remove the work folder of a training once its model is saved in the block; None for no training.

    Raises:
        OSError, RuntimeError: whatever the block raises, with the folder in which the training is kept.
    """
    if work is None:
        yield
        return
    try:
        yield
    except Exception as error:
        kind, mended = (OSError, "make room") if isinstance(error, OSError) else (StageError, "mend that")
        raise kind(f"{error}. The training is kept in {work}: {mended} and repeat the command") from error
    shutil.rmtree(work, ignore_errors=True)


def _stored(store: Callable[[], Path]) -> str:
    """Save the pruned model after a failed training, and return the sentence that says where, or why it is lost."""
    try:
        return f"The pruned model without recovery is saved in {store()}; to try again, add --overwrite to the command"
    except Exception as error:
        return f"Nor could the pruned model without recovery be saved: {error}"
