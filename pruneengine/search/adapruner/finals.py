"""Finals of a search: its best trials and the best baseline, compared on text that the search never saw."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pruneengine.common.errors import InputError
from pruneengine.common.progress import track
from pruneengine.evaluation.perplexity import perplexity
from pruneengine.search.adapruner.baselines import Baseline, by_loss
from pruneengine.search.adapruner.baselines import masked as masked_baseline
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.search.adapruner.planner import CandidatePlanner
from pruneengine.search.adapruner.result import Finalist
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.early_stop import mean
from pruneengine.search.study import HELD_OUT, MASK
from pruneengine.structured.apply import Correction, mask
from pruneengine.structured.compensate import bias_corrections, compensate
from pruneengine.structured.plan import Plan

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Outcome:
    """Winner of the finals and its rivals.

    Attributes:
        winner: the first of ``finalists``.
        candidate: the winner's point of the space; None for a baseline.
        finalists: by their mean loss on both texts, best first.
        plans: plans of all finalists, by name.
        corrections: corrections of the winner's compensation, for :func:`pruneengine.structured.apply.compact`.
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
    entrants: list[_Entrant] = []
    bound = math.inf
    if legal := by_loss(baselines):
        best, bound = legal[0], mean(legal[0].losses)
        # The best baselines were measured on the held-out blocks.
        assert best.held_out is not None
        entrants.append(_Entrant(Finalist(best.name, bound, best.held_out), masked_baseline(best, planner), None))
    for trial in track(_best_trials(study, planner.config.finalists, bound), "finalists"):
        candidate = space.suggest(_replay(trial))
        masked = planner.plan(candidate)
        key = HELD_OUT + masked.digest
        if key not in study.user_attrs:
            study.set_user_attr(key, held_out.evaluate([masked])[0].mean)
        finalist = Finalist(f"trial {trial.number}", trial.value, study.user_attrs[key])
        entrants.append(_Entrant(finalist, masked, candidate))
    if not entrants:
        reason = next((b.illegal for b in baselines if b.illegal), "no trial was complete")
        raise InputError(f"the search found no legal plan: {reason}")
    searched, kept = len(objective), len(held_out)
    entrants.sort(key=lambda e: (e.finalist.value * searched + e.finalist.held_out * kept) / (searched + kept))
    first = entrants[0]
    winner, corrections = _compensated(first, planner, held_out)
    finalists = (winner, *(entrant.finalist for entrant in entrants[1:]))
    plans = {entrant.finalist.name: entrant.masked.plan for entrant in entrants}
    return Outcome(winner, first.candidate, finalists, plans, corrections)


@dataclass(frozen=True)
class _Entrant:
    """A finalist with its plan, and its point of the space; a baseline has none."""

    finalist: Finalist
    masked: MaskedPlan
    candidate: Candidate | None


def _best_trials(study: optuna.Study, count: int, bound: float) -> list[optuna.trial.FrozenTrial]:
    """Return the best complete trials, one per mask, with losses up to the bound."""
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
    entrant: _Entrant, planner: CandidatePlanner, held_out: Objective
) -> tuple[Finalist, dict[str, Correction]]:
    """Return the winner with the compensation that does best on the held-out blocks, if one helps."""
    model, structure, plan = planner.model, planner.structure, entrant.masked.plan
    kind, lowest, corrections = "none", entrant.finalist.held_out, {}
    if entrant.masked.means:
        # The plan was judged with mean inputs: a bias is what holds them.
        kind, corrections = "bias", bias_corrections(model, structure, plan, entrant.masked.means)
    samples = planner.pool.chosen(planner.pool.largest)
    others = [other for other in planner.config.compensate if other not in ("none", kind)]
    for other in track(others, "compensate"):
        compensated = compensate(model, plan, samples, other, structure=structure)
        with mask(model, plan, structure=structure, corrections=compensated.corrections):
            # In the dtype of the dense loss: the two are compared.
            loss = perplexity(model, held_out.samples, dtype=held_out.dtype).nll - float(held_out.dense.mean())
        if loss < lowest:
            kind, lowest, corrections = other, loss, compensated.corrections
    return replace(entrant.finalist, compensated=lowest, compensation=kind), corrections
