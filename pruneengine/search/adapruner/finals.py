"""The end of a search: its best trials, and the best fixed metric, meet on text that the search never saw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pruneengine.common.progress import track
from pruneengine.evaluation.perplexity import perplexity
from pruneengine.search.adapruner.baselines import Baseline
from pruneengine.search.adapruner.baselines import masked as plan_of
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.search.adapruner.planner import CandidatePlanner
from pruneengine.search.adapruner.result import Finalist
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.study import HELD_OUT, MASK
from pruneengine.structured.apply import Correction, mask
from pruneengine.structured.compensate import bias_corrections, compensate
from pruneengine.structured.plan import Plan

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Outcome:
    """Who won, and against whom.

    Attributes:
        winner: the first of ``finalists``.
        candidate: its point of the space; None for a baseline.
        plans: of all finalists, by name.
        corrections: of the winner's compensation, for :func:`pruneengine.structured.apply.compact`.
    """

    winner: Finalist
    candidate: Candidate | None
    finalists: tuple[Finalist, ...]
    plans: dict[str, Plan]
    corrections: dict[str, Correction]


def pick_winner(
    study: optuna.Study,
    space: Space,
    planner: CandidatePlanner,
    objective: Objective,
    held_out: Objective,
    baselines: list[Baseline],
) -> Outcome:
    """Compare the best trials on the held-out blocks, and try to compensate the winner.

    The winner has the lowest mean loss over search and held-out blocks together, among those that are no worse on the
    search blocks than every baseline. Compensation is kept where it lowers the held-out loss; its own ridge is chosen
    on calibration text.

    Raises:
        ValueError: neither a baseline nor a trial gave a legal plan.
    """
    legal = [b for b in baselines if b.losses]
    best = min(legal, key=lambda b: b.value, default=None)
    entrants: list[tuple[Finalist, MaskedPlan, Candidate | None]] = []
    if best is not None:
        entrants.append((Finalist(best.name, best.value, best.held_out), plan_of(best, planner), None))
    trials = _best_trials(study, planner.config.finalists, best.value if best else float("inf"))
    for trial in track(trials, "finalists"):
        candidate = space.suggest(_replay(trial))
        chosen = planner.plan(candidate)
        key = HELD_OUT + chosen.digest
        if key not in study.user_attrs:
            study.set_user_attr(key, held_out.evaluate([chosen])[0].mean)
        finalist = Finalist(f"trial {trial.number}", trial.value, study.user_attrs[key])
        entrants.append((finalist, chosen, candidate))
    if not entrants:
        reason = next((b.illegal for b in baselines if b.illegal), "no trial was complete")
        raise ValueError(f"the search found no legal plan: {reason}")
    weights = len(objective), len(held_out)
    entrants.sort(key=lambda e: (e[0].value * weights[0] + e[0].held_out * weights[1]) / sum(weights))
    winner, chosen, candidate = entrants[0]
    winner, corrections = _compensated(winner, chosen, planner, held_out)
    finalists = (winner, *(finalist for finalist, _, _ in entrants[1:]))
    plans = {finalist.name: masked.plan for finalist, masked, _ in entrants}
    return Outcome(winner, candidate, finalists, plans, corrections)


def _best_trials(study: optuna.Study, count: int, bound: float) -> list[optuna.trial.FrozenTrial]:
    """The best complete trials with masks of their own, none of them above the bound."""
    import optuna

    done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    chosen: dict[str, optuna.trial.FrozenTrial] = {}
    for trial in sorted(done, key=lambda t: (t.value, t.number)):
        if trial.value <= bound and len(chosen) < count:
            chosen.setdefault(trial.user_attrs[MASK], trial)
    return list(chosen.values())


def _replay(trial: optuna.trial.FrozenTrial) -> optuna.trial.FixedTrial:
    import optuna

    return optuna.trial.FixedTrial(trial.params)


def _compensated(
    winner: Finalist, chosen: MaskedPlan, planner: CandidatePlanner, held_out: Objective
) -> tuple[Finalist, dict[str, Correction]]:
    """The winner with the compensation that does best on the held-out blocks, if one helps."""
    model, structure, plan = planner.model, planner.structure, chosen.plan
    best, corrections = replace(winner, compensated=winner.held_out), {}
    if chosen.means:
        # The plan was judged with mean inputs: a bias is what holds them.
        best = replace(best, compensation="bias")
        corrections = bias_corrections(model, structure, plan, chosen.means)
    samples = planner.pool.chosen(planner.pool.largest)
    for how in track([h for h in planner.config.compensate if h not in ("none", best.compensation)], "compensate"):
        found = compensate(model, plan, samples, how, structure=structure)
        with mask(model, plan, structure=structure, corrections=found.corrections):
            # In what the dense loss was computed in: the two are compared.
            loss = perplexity(model, held_out.samples, dtype=held_out.dtype).nll - float(held_out.dense.mean())
        if loss < best.compensated:
            best, corrections = replace(winner, compensated=loss, compensation=how), found.corrections
    return best, corrections
