"""Early stopping: the test by which a trial is clearly worse than the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pruneengine.common.optional_imports import require_extra


def is_worse(losses: Sequence[float], best: Sequence[float], p: float, best_mean: float | None = None) -> bool:
    """Return whether the first losses of a trial are above the best trial's, by the Wilcoxon signed-rank test.

    A trial is never worse where its mean is not above the best one's, or a loss is not finite.

    Args:
        losses: of the trial so far, block by block or segment by segment.
        best: of the best trial, in the same order; at least as many, or none where there is no best trial.
        p: p-value of the one-sided test below which the trial is worse.
        best_mean: mean that the trial's mean is compared with; by default that of the best trial's same losses.
    """
    from scipy.stats import wilcoxon

    paired = best[: len(losses)]
    if not paired or len(losses) < 2 or not all(map(math.isfinite, (*losses, *paired))):
        return False
    if mean(losses) <= (mean(paired) if best_mean is None else best_mean):
        return False
    differences = [loss - least for loss, least in zip(losses, paired, strict=True)]
    return bool(wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue < p)


def mean(losses: Sequence[float]) -> float:
    """Return the mean of losses, nats."""
    return sum(losses) / len(losses)


def import_test() -> None:
    """Import SciPy now rather than within the first trial that is tested."""
    with require_extra("search"):
        import scipy.stats  # noqa: F401
