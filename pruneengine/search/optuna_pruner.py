"""Early stopping as a pruner of Optuna, so that the losses compared are those in the study."""

from __future__ import annotations

from pruneengine.common.optional_imports import require_extra
from pruneengine.search.early_stop import import_test, is_worse, mean

with require_extra("search"):
    import optuna
    from optuna.pruners import BasePruner, NopPruner


def pruner(stop: float | None) -> BasePruner:
    """Return the pruner that tests a trial against the study's best one; for ``stop`` None one that stops no trial."""
    return NopPruner() if stop is None else ClearlyWorsePruner(stop)


class ClearlyWorsePruner(BasePruner):
    """Stops a trial whose reported losses are clearly above the best complete trial's.

    It decides as Optuna's own WilcoxonPruner does: a trial's mean must exceed the best trial's over all blocks.

    Args:
        p: p-value of the test, in (0, 1).
    """

    def __init__(self, p: float) -> None:
        self._p = p
        import_test()

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Return whether the trial is to be stopped; never before the study has a complete trial."""
        try:
            best = study.best_trial
        except ValueError:
            return False
        losses, best_losses = (_in_order(trial.intermediate_values) for trial in (trial, best))
        return bool(best_losses) and is_worse(losses, best_losses, self._p, mean(best_losses))


def _in_order(reported: dict[int, float]) -> list[float]:
    return [reported[block] for block in sorted(reported)]
