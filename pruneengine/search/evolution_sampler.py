"""The evolution as a sampler of Optuna, so that storage, resumption and workers are the study's."""

from __future__ import annotations

import random
from typing import Any

from pruneengine.extras import needs
from pruneengine.search.evolution import GENES, Evolution, Member, function_of, genes_of
from pruneengine.sparse.functions import Function

with needs("search"):
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.samplers import BaseGASampler

# Of a trial: the allocation that it gave, and its loss, or an estimate of it where it was stopped early.
ALLOCATION, ESTIMATE = "allocation", "estimate"
SPACE = {gene: CategoricalDistribution(choices) for gene, choices in GENES.items()}


class Past:
    """What the trials of a study were, read from it once each: a sampler that asks of all trials before every trial
    would take longest near the end.

    Attributes:
        drawn: the genes of all finished trials.
        best: the first best trial of every allocation, by that allocation.
    """

    def __init__(self) -> None:
        self.drawn: set[tuple] = set()
        self.best: dict[tuple, optuna.trial.FrozenTrial] = {}
        self._first, self._read = 0, set()

    def update(self, study: optuna.Study) -> None:
        """Read the trials that were finished since."""
        trials = study.get_trials(deepcopy=False)
        for trial in trials[self._first :]:
            if trial.state.is_finished() and trial.number not in self._read:
                self._add(trial)
        while self._first < len(trials) and self._first in self._read:
            self._read.discard(self._first)
            self._first += 1

    def _add(self, trial: optuna.trial.FrozenTrial) -> None:
        self._read.add(trial.number)
        # A failed one was interrupted: its successor draws the same.
        if trial.state == optuna.trial.TrialState.FAIL:
            return
        self.drawn.add(tuple(trial.params.get(gene) for gene in GENES))
        if ESTIMATE not in trial.user_attrs:
            return
        known = self.best.setdefault(tuple(trial.user_attrs[ALLOCATION]), trial)
        if trial.user_attrs[ESTIMATE] < known.user_attrs[ESTIMATE]:
            self.best[tuple(trial.user_attrs[ALLOCATION])] = trial


class EvolutionSampler(BaseGASampler):
    """Draws a trial's function among the children of the best trials before it.

    A steady state rather than generations: every trial is its own, and its population are the best distinct
    allocations of all trials before. Trials that were stopped early count, by their estimates: nearly all are, and
    parents only from the rest would be a handful.

    Args:
        seed: of this trial; no state lives in a process.
        evolution: how children are made; None draws all functions at random.
        past: of the study, kept from trial to trial.
    """

    def __init__(self, seed: int, evolution: Evolution | None, past: Past | None = None) -> None:
        super().__init__(population_size=evolution.population if evolution else None)
        self._rng = random.Random(seed)
        self._evolution, self._past = evolution, past or Past()

    def get_trial_generation(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> int:
        """Its number: a steady state has a generation a trial."""
        return trial.number

    def get_population(self, study: optuna.Study, generation: int) -> list[optuna.trial.FrozenTrial]:
        """The best trial of each of the best allocations so far, best first."""
        self._past.update(study)
        ranked = sorted(self._past.best.values(), key=lambda trial: (trial.user_attrs[ESTIMATE], trial.number))
        return ranked[: self.population_size]

    def select_parent(self, study: optuna.Study, generation: int) -> list[optuna.trial.FrozenTrial]:
        """All of the population: the tournaments are a trial's own."""
        return self.get_population(study, generation)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, CategoricalDistribution]:
        return SPACE

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        if self._evolution is None:
            self._past.update(study)
            return genes_of(Evolution().unseen((), self._past.drawn, self._rng))
        chosen = self.select_parent(study, self.get_trial_generation(study, trial))
        population = [Member(function_of(each.params), each.user_attrs[ESTIMATE]) for each in chosen]
        return genes_of(self._evolution.unseen(population, self._past.drawn, self._rng))

    def sample_independent(self, study: optuna.Study, trial: optuna.trial.FrozenTrial, name: str, distribution: Any):
        raise ValueError(f"parameter {name!r} is no gene of an allocation function; known: {', '.join(GENES)}")


def suggest(trial: optuna.trial.BaseTrial) -> Function:
    """The function of a trial."""
    return function_of({gene: trial.suggest_categorical(gene, choices) for gene, choices in GENES.items()})
