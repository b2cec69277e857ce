"""Trials of a search over allocation functions: propose, score, and evaluate until the trial is clearly worse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pruneengine.common.progress import Stopwatch
from pruneengine.search.dsa.allocator import Allocator, TriedAllocation
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.evolution import Evolution
from pruneengine.search.dsa.history import FOUND, NOT_FINITE, TrialHistory
from pruneengine.search.dsa.objective import SparseObjective
from pruneengine.search.early_stop import import_test, is_worse, mean
from pruneengine.search.loop import TrialLoop
from pruneengine.search.study import ILLEGAL, counted, trial_seed

if TYPE_CHECKING:
    import optuna

    from pruneengine.search.dsa.sampler import EvolutionSampler


@dataclass
class DsaLoop(TrialLoop):
    """Trials over allocation functions, until all are drawn or none was better for the length of a plateau.

    Attributes:
        rivals: losses of the fixed allocations on all segments, by their levels.
        history: of the study's trials.
        clock: seconds by stage, of this process.
    """

    config: DsaConfig
    allocator: Allocator
    objective: SparseObjective
    rivals: Mapping[tuple[int, ...], tuple[float, ...]]
    history: TrialHistory = field(default_factory=TrialHistory)
    clock: Stopwatch = field(default_factory=Stopwatch)

    @property
    def over(self) -> bool:
        """True once the trials without a better one have reached the length of a plateau."""
        plateau = self.config.plateau
        return plateau is not None and self.history.update(self.study).since >= plateau

    def prepare(self) -> None:
        """Import the test that stops trials."""
        import_test()

    def run_trials(self, count: int) -> None:
        """Draw ``count`` functions one after another, each evaluated until it is clearly worse than the best."""
        for _ in range(count):
            self._run_trial()

    def _run_trial(self) -> None:
        import optuna

        from pruneengine.search.dsa.sampler import suggest

        before = dict(self.clock.seconds)
        with self.clock("propose"):
            trial = self.ask(self._sampler())
            function = suggest(trial)
        try:
            with self.clock("score"):
                allocated = self.allocator.of_function(function)
        except ValueError as reason:
            return self._refuse(trial, str(reason))
        entry, complete = self._evaluate(allocated)
        entry["seconds"] = {
            stage: round(spent - before.get(stage, 0.0), 6)
            for stage, spent in self.clock.seconds.items()
            if spent > before.get(stage, 0.0)
        }
        with self.clock("tell"):
            trial.set_user_attr(FOUND, entry)
            if entry["estimate"] is None:
                return self._refuse(trial, NOT_FINITE)
            state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
            self.study.tell(trial, entry["estimate"] if complete else None, state=state)

    def _refuse(self, trial: optuna.trial.Trial, reason: str) -> None:
        import optuna

        trial.set_user_attr(ILLEGAL, reason)
        self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def _sampler(self) -> EvolutionSampler:
        from pruneengine.search.dsa.sampler import EvolutionSampler

        config = self.config
        evolution = Evolution(config.population, config.tournament, config.crossover, config.mutation)
        seed = trial_seed(config.seed, counted(self.study))
        return EvolutionSampler(seed, evolution if config.sampler == "evolution" else None, self.history)

    def _evaluate(self, allocated: TriedAllocation) -> tuple[dict[str, Any], bool]:
        """Return the entry that a trial leaves in the study, and whether all its losses are known.

        The estimate is None where a loss is not finite: no test can compare it.
        """
        levels = allocated.levels
        entry: dict[str, Any] = {"levels": list(levels)}
        history = self.history.update(self.study)
        fixed = mean(self.rivals[levels]) if levels in self.rivals else None
        if levels in history.ruined or (fixed is not None and not math.isfinite(fixed)):
            return entry | {"losses": [], "estimate": None, "origin": "repeat"}, False
        if fixed is not None:
            return entry | {"losses": [], "estimate": fixed, "origin": "repeat"}, True
        known = history.known.get(levels)
        if known is not None:
            return entry | {"losses": [], "estimate": known.estimate, "origin": "repeat"}, known.complete
        best = self._best_losses()

        def stop(losses: tuple[float, ...]) -> bool:
            with self.clock("test"):
                return self.config.stop is not None and is_worse(losses, best, self.config.stop)

        fitness = self.objective.evaluate(levels, stop)
        for stage, spent in fitness.seconds.items():
            self.clock.seconds[stage] = self.clock.seconds.get(stage, 0.0) + spent
        estimate = fitness.mean
        if not math.isfinite(estimate):
            segments = len(fitness.losses)
            return entry | {"losses": [], "segments": segments, "estimate": None, "origin": "sampler"}, False
        if fitness.stopped and best:
            # The best one's mean over all segments, plus the difference where both were run.
            estimate += mean(best) - mean(best[: len(fitness.losses)])
        losses = [round(loss, 6) for loss in fitness.losses]
        return entry | {"losses": losses, "estimate": estimate, "origin": "sampler"}, not fitness.stopped

    def _best_losses(self) -> tuple[float, ...]:
        """Return the losses of the best allocation so far, fixed ones included; none where there is no finite one."""
        ours = [self.history.best.losses] if self.history.best else []
        rivals = [losses for losses in self.rivals.values() if math.isfinite(mean(losses))]
        return min([*rivals, *ours], key=mean, default=())
