"""Trials of an AdaPruner search: propose, plan, evaluate; all that a trial computes is left in the study."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.search.adapruner.planner import CandidatePlanner
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.loop import TrialLoop
from pruneengine.search.study import ILLEGAL, KV_BYTES, MASK, ORIGIN, SECONDS, counted, sampler

if TYPE_CHECKING:
    import optuna


@dataclass
class _Proposal:
    """A trial on its way from ask to tell."""

    trial: optuna.trial.Trial
    candidate: Candidate
    seconds: dict[str, float]


@dataclass
class AdaPrunerLoop(TrialLoop):
    """Trials over samples, metric and allocation.

    Attributes:
        known: losses per block of masks that were evaluated before, by their digest; baselines put theirs here.
    """

    config: AdaPrunerConfig
    space: Space
    planner: CandidatePlanner
    objective: Objective
    known: dict[str, list[float]]

    @property
    def together(self) -> int:
        """Number of candidates that share the objective's forward passes."""
        return self.config.together

    def prepare(self) -> None:
        """Set the study's pruner."""
        from pruneengine.search.optuna_pruner import pruner

        self.study.pruner = pruner(self.config.stop)

    def run_trials(self, count: int) -> None:
        """Draw ``count`` candidates, and evaluate those whose plans are legal and whose masks are not known."""
        proposals = [self._propose() for _ in range(count)]
        masked = [(proposal, plan) for proposal in proposals if (plan := self._settle(proposal)) is not None]
        if masked:
            self._evaluate(masked)

    def _propose(self) -> _Proposal:
        start = time.perf_counter()
        config = self.config
        trial = self.ask(sampler(config.sampler, config.seed, counted(self.study), config.startup))
        candidate = self.space.suggest(trial)
        return _Proposal(trial, candidate, {"propose": time.perf_counter() - start})

    def _settle(self, proposal: _Proposal) -> MaskedPlan | None:
        """Return the plan to evaluate; or tell a trial without a legal plan, or with a known mask, and return None."""
        import optuna

        trial, start = proposal.trial, time.perf_counter()
        try:
            masked = self.planner.plan(proposal.candidate)
        except ValueError as reason:
            trial.set_user_attr(ILLEGAL, str(reason))
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return None
        digest = masked.digest
        proposal.seconds["decide"] = time.perf_counter() - start
        trial.set_user_attr(MASK, digest)
        trial.set_user_attr(KV_BYTES, self.planner.kv_bytes(masked.plan))
        losses = self.known.get(digest) or self._known_in_study(digest, trial.number)
        if losses is None:
            return masked
        for block, loss in enumerate(losses):
            trial.report(loss, block)
        trial.set_user_attr(ORIGIN, "repeat")
        trial.set_user_attr(SECONDS, proposal.seconds)
        complete = len(losses) == len(self.objective)
        state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
        self.study.tell(trial, sum(losses) / len(losses) if complete else None, state=state)
        return None

    def _evaluate(self, masked: list[tuple[_Proposal, MaskedPlan]]) -> None:
        """Evaluate plans in shared forward passes, each until it is stopped, and tell their trials."""
        import optuna

        proposals = [proposal for proposal, _ in masked]
        reporting = [0.0] * len(proposals)

        def stop(position: int, block: int, loss: float) -> bool:
            start = time.perf_counter()
            trial = proposals[position].trial
            trial.report(loss, block)
            over = trial.should_prune()
            reporting[position] += time.perf_counter() - start
            return over

        evaluations = self.objective.evaluate([plan for _, plan in masked], stop)
        for (proposal, plan), evaluation, spent in zip(masked, evaluations, reporting, strict=True):
            trial, seconds = proposal.trial, proposal.seconds | {"evaluate": evaluation.seconds, "report": spent}
            trial.set_user_attr(SECONDS, {stage: round(s, 6) for stage, s in seconds.items()})
            if evaluation.stopped:
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                self.study.tell(trial, evaluation.mean)
                self.known[plan.digest] = evaluation.losses.tolist()

    def _known_in_study(self, digest: str, number: int) -> list[float] | None:
        """Return the losses of an earlier trial with the same mask, another worker's too; None without one."""
        import optuna

        # Not of a failed one: it was interrupted, which says nothing of its mask, and its successor draws the same.
        told = [optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]
        for trial in self.study.get_trials(deepcopy=False, states=told):
            if trial.number != number and trial.user_attrs.get(MASK) == digest:
                blocks = trial.intermediate_values
                if blocks and sorted(blocks) == list(range(len(blocks))):
                    return [blocks[b] for b in range(len(blocks))]
        return None
