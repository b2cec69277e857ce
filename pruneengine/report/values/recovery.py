"""Values of a recovery in ``report.json``, and warnings to its reader."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from pruneengine.data.windows import Samples, check_overlap
from pruneengine.evaluation.perplexity import PerplexityResult, paired_difference
from pruneengine.recovery.rows import TokenRows
from pruneengine.recovery.run import RecoverReport


def summarise(
    report: RecoverReport,
    before: PerplexityResult | None = None,
    after: PerplexityResult | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the JSON value that ``report.json`` holds under ``recovery``."""
    summary = report.to_dict()
    if before and after:
        summary["perplexity"] = {"before": before.perplexity, "after": after.perplexity}
        summary["perplexity tokens"] = before.tokens
        summary["perplexity dtype"] = before.dtype
        if len(before.per_window) > 1:
            loss = paired_difference(before, after)
            summary["loss difference"] = {"mean": loss.mean, "standard error": loss.standard_error}
    if warnings:
        summary["warnings"] = list(warnings)
    return json.loads(json.dumps(summary))


def overlap_warnings(rows: TokenRows, evaluation: Samples | None) -> tuple[str, ...]:
    """Return a warning if evaluation windows hold text that was trained on."""
    if evaluation is None:
        return ()
    shared = check_overlap(Samples(torch.cat(rows.tokens)[None], ("recovery",)), evaluation)
    if not shared["overlapping_windows"]:
        return ()
    return (
        f"{shared['overlapping_windows']} of {len(evaluation)} evaluation windows share {shared['ngram']} tokens or "
        "more with the recovery text: the perplexity is optimistic",
    )


def training_warnings(report: RecoverReport) -> tuple[str, ...]:
    """Return warnings if the training was cut short, gained nothing or was not validated."""
    warnings = []
    if not report.validation_rows and report.config.val_rows is None:
        warnings.append(
            f"{report.rows} rows are too few to keep any for validation: the last step is kept, unchecked; give more "
            "rows, or --val-rows"
        )
    if report.stopped:
        warnings.append(
            f"{report.stopped}: the training stopped there; the weights are those of step {report.best_step}, the best "
            "that was validated before it"
        )
    if not report.best_step:
        warnings.append(
            f"no step had a lower validation loss than the start ({report.validation[0]:.4f}): weights unchanged"
        )
    return tuple(warnings)
