"""Trials of a study as values, and the importance of its parameters."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pruneengine.search.adapruner.result import TrialRecord
from pruneengine.search.study import ILLEGAL, KV_BYTES, ORIGIN, SECONDS

if TYPE_CHECKING:
    import optuna


def trial_records(study: optuna.Study) -> tuple[TrialRecord, ...]:
    """Return all trials that were drawn, in their order."""
    return tuple(
        TrialRecord(
            number=trial.number,
            state=trial.state.name.lower(),
            value=trial.value if trial.state.name == "COMPLETE" else None,
            blocks=tuple(trial.intermediate_values[b] for b in sorted(trial.intermediate_values)),
            params=dict(trial.params),
            seconds=dict(trial.user_attrs.get(SECONDS, {})),
            origin=trial.user_attrs.get(ORIGIN, "sampler"),
            illegal=trial.user_attrs.get(ILLEGAL),
            kv_bytes=trial.user_attrs.get(KV_BYTES),
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.state.name != "WAITING"
    )


def importance(study: optuna.Study) -> dict[str, float]:
    """Return each parameter's share in what separates good trials from the rest, largest first.

    Computed by PED-ANOVA (Watanabe et al. 2023) for the parameters that every complete trial has; empty for fewer than
    10 complete trials.
    """
    import optuna

    done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    shared = set.intersection(*(set(trial.params) for trial in done)) if done else set()
    varied = sorted(name for name in shared if len({str(trial.params[name]) for trial in done}) > 1)
    if len(done) < 10 or not varied:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
