"""Evolution as a sampler of Optuna, so that storage, resumption and workers are the study's."""

from __future__ import annotations

import random
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.common.optional_imports import require_extra
from pruneengine.search.dsa.evolution import GENES, Evolution, function_of, genes_of
from pruneengine.search.dsa.history import TrialHistory
from pruneengine.sparse.functions.function import Function

with require_extra("search"):
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.samplers import BaseGASampler

SPACE = {gene: CategoricalDistribution(choices) for gene, choices in GENES.items()}


class EvolutionSampler(BaseGASampler):
    """Sampler of functions among the children of the best so far: a steady state, without generations.

    Args:
        seed: random seed of this trial; no state lives in a process.
        evolution: rates by which children are made; None draws all functions at random.
        history: of the study's trials, kept from trial to trial; read anew without one.
    """

    def __init__(self, seed: int, evolution: Evolution | None, history: TrialHistory | None = None) -> None:
        super().__init__(population_size=evolution.population if evolution else None)
        self._rng = random.Random(seed)
        self._evolution, self._history = evolution, history or TrialHistory()

    def get_trial_generation(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> int:
        """Return the trial's number: every trial is a generation of its own."""
        return trial.number

    def get_population(self, study: optuna.Study, generation: int) -> list[optuna.trial.FrozenTrial]:
        """Return the first trials of the best allocations so far, best first."""
        trials = study.get_trials(deepcopy=False)
        return [trials[known.number] for known in self._history.update(study).ranked(self.population_size)]

    def select_parent(self, study: optuna.Study, generation: int) -> list[optuna.trial.FrozenTrial]:
        """Return the whole population: tournaments are a trial's own."""
        return self.get_population(study, generation)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, CategoricalDistribution]:
        """Return all genes: they are drawn together."""
        return SPACE

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the genes of a child that was not drawn before."""
        history = self._history.update(study)
        population = history.population(self.population_size) if self._evolution else []
        return genes_of((self._evolution or Evolution()).unseen(population, history.drawn, self._rng))

    def sample_independent(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, name: str, distribution: Any
    ) -> Any:
        """Raise ValueError: a parameter that is no gene."""
        raise InputError(f"parameter {name!r} is no gene of an allocation function; known: {', '.join(GENES)}")


def suggest(trial: optuna.trial.BaseTrial) -> Function:
    """Return the function of a trial."""
    return function_of({gene: trial.suggest_categorical(gene, choices) for gene, choices in GENES.items()})
