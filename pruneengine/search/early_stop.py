"""Stopping early: when a trial is clearly worse than the best one."""

from __future__ import annotations


def is_worse(losses: tuple[float, ...], best: tuple[float, ...], p: float) -> bool:
    """Whether a candidate's first losses are above the best one's, by the Wilcoxon signed-rank test, segment by
    segment; as Optuna's WilcoxonPruner decides, all segments of a piece at once.

    Args:
        losses: of the candidate so far.
        best: of the best one, on all segments.
        p: one-sided; never where the candidate's mean is not above the best one's on all of its segments.
    """
    from scipy.stats import wilcoxon

    if not best or len(losses) < 2 or mean(losses) <= mean(best[: len(losses)]):
        return False
    differences = [loss - least for loss, least in zip(losses, best, strict=False)]
    return bool(wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue < p)


def mean(losses: tuple[float, ...]) -> float:
    """Of the losses of segments: nats."""
    return sum(losses) / len(losses)
