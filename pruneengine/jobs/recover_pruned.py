"""Recovery in the job that prunes: what ``--recover`` adds to a prune and to a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from pruneengine.engine import Stopwatch
from pruneengine.jobs.yardstick import Yardstick
from pruneengine.recovery import (
    RecoverConfig,
    RecoverReport,
    TokenRows,
    overlap_warnings,
    recover,
    summarise,
    training_warnings,
)
from pruneengine.report.values import Measures


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


def recover_pruned(
    model: nn.Module,
    tokenizer: Any,
    config: RecoverConfig,
    rows: TokenRows,
    work: Path,
    *,
    before: Measures,
    yardstick: Yardstick,
    store: Callable[[], Path],
    clock: Stopwatch,
    trust_remote_code: bool = False,
) -> Recovered:
    """Train a pruned model in place, and measure it.

    Args:
        model: as pruned.
        tokenizer: its tokenizer.
        config: how to train.
        rows: what to train on.
        work: folder of the training's checkpoints; it stays.
        before: measures of the pruned model.
        yardstick: what they were taken by.
        store: saves the pruned model where the training fails, and says where.
        clock: gains "recover", and adds to "evaluate".
        trust_remote_code: as of :func:`pruneengine.recovery.recover`.

    Raises:
        ArithmeticError, OSError, RuntimeError: as :func:`pruneengine.recovery.recover`, once the pruned model is saved.
    """
    try:
        with clock("recover"):
            report = recover(model, tokenizer, config, data=rows, work_dir=work, trust_remote_code=trust_remote_code)
    except (ArithmeticError, OSError, RuntimeError) as error:
        # The weights are as pruned; what was computed so far must not be lost.
        raise type(error)(f"{error}. The pruned model without recovery is saved in {store()}") from error
    with clock("evaluate"):
        measured, ruined = yardstick.measure_changed(model)
    after = replace(before, perplexity=measured.perplexity)
    warnings = overlap_warnings(rows, yardstick.text) + training_warnings(report) + ruined
    numbers = summarise(report, before.perplexity, after.perplexity, warnings)
    return Recovered(report, after, numbers, warnings)
