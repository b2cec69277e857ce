"""Recovery in the job that prunes: what ``--recover`` adds to a prune and to a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneengine.evaluation.measures import Measurer, Measures
from pruneengine.recovery import RecoverConfig, RecoverReport, TokenRows, recover
from pruneengine.report.values.recovery import overlap_warnings, summarise, training_warnings
from pruneengine.structured.prune import Stopwatch


@dataclass(frozen=True)
class Recovered:
    """What became of a pruned model.

    Attributes:
        after: as the pruned model's measures, with the perplexity of the recovered one.
        numbers: what ``report.json`` holds under "recovery".
    """

    report: RecoverReport
    after: Measures
    numbers: dict[str, Any]
    warnings: tuple[str, ...]


def recovering(rows: TokenRows, work: Path) -> str:
    """What to say at the start of the training."""
    return f"recovering on {len(rows)} rows; checkpoints in {work}, from which the same command goes on if interrupted"


def recover_pruned(
    model: nn.Module,
    tokenizer: Any,
    config: RecoverConfig,
    rows: TokenRows,
    work: Path,
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
        config: how to train.
        rows: what to train on.
        work: folder of the training's checkpoints; it stays.
        before: measures of the pruned model.
        measurer: what they were taken by.
        store: saves the pruned model where the training fails, and says where.
        clock: gains "recover", and adds to "evaluate".
        trust_remote_code: as of :func:`pruneengine.recovery.recover`.

    Raises:
        RuntimeError: whatever :func:`pruneengine.recovery.recover` raised, once the pruned model is saved, with where.
    """
    try:
        with clock("recover"):
            report = recover(
                model,
                tokenizer,
                config,
                data=rows,
                work_dir=work,
                dtype=measurer.dtype,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:
        raise RuntimeError(f"{str(error) or type(error).__name__}. {_stored(store)}") from error
    with clock("evaluate"):
        measured, ruined = measurer.measure_pruned(model)
    after = replace(before, perplexity=measured.perplexity)
    warnings = overlap_warnings(rows, measurer.text) + training_warnings(report) + ruined
    numbers = summarise(report, before.perplexity, after.perplexity, warnings)
    return Recovered(report, after, numbers, warnings)


def _stored(store: Callable[[], Path]) -> str:
    """What became of the pruned model after a training that failed. The weights are as pruned, and must not be lost."""
    try:
        return f"The pruned model without recovery is saved in {store()}; to try again, add --overwrite to the command"
    except Exception as error:
        return f"Nor could the pruned model without recovery be saved: {error}"
