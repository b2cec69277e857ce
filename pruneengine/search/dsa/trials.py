"""The loop of a search over allocation functions: propose, score, and run what is new until it is known to be worse."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pruneengine.common.optional_imports import require_extra
from pruneengine.common.progress import Stopwatch, track
from pruneengine.search.dsa.allocator import Allocator, TriedAllocation
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.evolution import Evolution
from pruneengine.search.dsa.objective import SparseObjective
from pruneengine.search.dsa.past import FOUND, NOT_FINITE, TrialHistory
from pruneengine.search.early_stop import is_worse, mean
from pruneengine.search.study import ILLEGAL, ask, at_work, counted, fail_abandoned

if TYPE_CHECKING:
    import optuna


@dataclass
class DsaLoop:
    """Runs trials of one study until enough were drawn, or none was better for long.

    Attributes:
        rivals: losses of the fixed allocations on all segments, by their levels.
        clock: seconds by stage, of this process.
    """

    study: optuna.Study
    allocator: Allocator
    objective: SparseObjective
    config: DsaConfig
    rivals: Mapping[tuple[int, ...], tuple[float, ...]]
    past: TrialHistory = field(default_factory=TrialHistory)
    clock: Stopwatch = field(default_factory=Stopwatch)

    def run(self, deadline: float | None = None, workers: int = 1, wanted: Callable[[], bool] = lambda: True) -> None:
        """Draw, score, evaluate and tell until the study counts ``config.trials``, or a plateau is reached.

        An interrupted trial is marked as failed; what was told stays.

        Args:
            deadline: no trial is begun once :func:`time.monotonic` passes it.
            workers: how many share the study, for the estimate of the time left.
            wanted: no trial is begun once it answers False.
        """
        with require_extra("search"):
            # Now, and not within the first trial that is tested.
            import scipy.stats  # noqa: F401
        fail_abandoned(self.study)
        left = self.config.trials - counted(self.study)
        with at_work(self.study):
            for _ in track(self._positions(deadline, wanted), "search", -(-left // workers)):
                self._step()

    def _positions(self, deadline: float | None, wanted: Callable[[], bool]) -> Iterator[None]:
        while counted(self.study) < self.config.trials and not self.over:
            if not wanted() or (deadline is not None and time.monotonic() >= deadline):
                return
            yield

    @property
    def over(self) -> bool:
        """Whether there was no better trial for so long that the search has ended."""
        plateau = self.config.plateau
        return plateau is not None and self.past.update(self.study).since >= plateau

    def _step(self) -> None:
        import optuna

        from pruneengine.search.dsa.sampler import suggest

        before = dict(self.clock.seconds)
        with self.clock("propose"):
            trial = self._ask()
        try:
            with self.clock("propose"):
                function = suggest(trial)
            try:
                with self.clock("score"):
                    allocated = self.allocator.of_function(function)
            except ValueError as reason:
                return self._refuse(trial, str(reason))
            found, complete = self._found(allocated)
            found["seconds"] = {
                stage: round(spent - before.get(stage, 0.0), 6)
                for stage, spent in self.clock.seconds.items()
                if spent > before.get(stage, 0.0)
            }
            with self.clock("tell"):
                trial.set_user_attr(FOUND, found)
                if found["estimate"] is None:
                    return self._refuse(trial, NOT_FINITE)
                state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
                self.study.tell(trial, found["estimate"] if complete else None, state=state)
        except optuna.exceptions.UpdateFinishedTrialError:
            # Another machine took it for lost, and failed it.
            return None
        except BaseException:
            if not self.study.get_trials(deepcopy=False)[trial.number].state.is_finished():
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise

    def _refuse(self, trial: optuna.trial.Trial, reason: str) -> None:
        import optuna

        trial.set_user_attr(ILLEGAL, reason)
        self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def _ask(self) -> optuna.trial.Trial:
        from pruneengine.search.dsa.sampler import EvolutionSampler

        config = self.config
        evolution = Evolution(config.population, config.tournament, config.crossover, config.mutation)
        # Seeded by its position, so that a search that was killed and resumed draws what an unbroken one would have.
        seed = (config.seed * 1_000_003 + counted(self.study)) % 2**32
        self.study.sampler = EvolutionSampler(seed, evolution if config.sampler == "evolution" else None, self.past)
        return ask(self.study)

    def _found(self, allocated: TriedAllocation) -> tuple[dict[str, Any], bool]:
        """What a trial leaves in the study, and whether all its losses are known.

        The estimate is None where a loss is not finite: nothing is better or worse than that by any test.
        """
        levels = allocated.levels
        found: dict[str, Any] = {"levels": list(levels)}
        past = self.past.update(self.study)
        fixed = mean(self.rivals[levels]) if levels in self.rivals else None
        if levels in past.ruined or (fixed is not None and not math.isfinite(fixed)):
            return found | {"losses": [], "estimate": None, "origin": "repeat"}, False
        if fixed is not None:
            return found | {"losses": [], "estimate": fixed, "origin": "repeat"}, True
        known = past.known.get(levels)
        if known is not None:
            return found | {"losses": [], "estimate": known.estimate, "origin": "repeat"}, known.complete
        best = self._best()

        def stop(losses: tuple[float, ...]) -> bool:
            with self.clock("test"):
                return self.config.stop is not None and is_worse(losses, best, self.config.stop)

        fitness = self.objective.evaluate(levels, stop)
        for stage, spent in fitness.seconds.items():
            self.clock.seconds[stage] = self.clock.seconds.get(stage, 0.0) + spent
        estimate = fitness.mean
        if not math.isfinite(estimate):
            run = len(fitness.losses)
            return found | {"losses": [], "segments": run, "estimate": None, "origin": "sampler"}, False
        if fitness.stopped and best:
            # What it is above the best one so far, where both were run.
            estimate += mean(best) - mean(best[: len(fitness.losses)])
        losses = [round(loss, 6) for loss in fitness.losses]
        return found | {"losses": losses, "estimate": estimate, "origin": "sampler"}, not fitness.stopped

    def _best(self) -> tuple[float, ...]:
        """The losses of the best allocation so far, fixed ones too."""
        ours = [self.past.best.losses] if self.past.best else []
        rivals = [losses for losses in self.rivals.values() if math.isfinite(mean(losses))]
        return min([*rivals, *ours], key=mean, default=())
