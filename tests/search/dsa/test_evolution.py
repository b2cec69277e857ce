"""Evolution of allocation functions: genes, children, and the sampler that draws them for a study."""

import random

import pytest

optuna = pytest.importorskip("optuna")

from pruneengine.search import study as studies  # noqa: E402
from pruneengine.search.dsa.evolution import (  # noqa: E402
    GENES,
    Evolution,
    Member,
    function_of,
    genes_of,
    random_function,
)
from pruneengine.search.dsa.history import FOUND, TrialHistory  # noqa: E402
from pruneengine.search.dsa.sampler import EvolutionSampler, suggest  # noqa: E402


def members(count, seed=0):
    rng = random.Random(seed)
    return [Member(random_function(rng), float(value)) for value in range(count)]


def test_genes_hold_a_function():
    rng = random.Random(0)
    for _ in range(300):
        function = random_function(rng)
        assert function_of(genes_of(function)) == function
        assert genes_of(function).keys() == GENES.keys()


def test_children_stay_in_the_space():
    rng, population = random.Random(1), members(10)
    drawn = [Evolution(population=10).child(population, rng) for _ in range(500)]
    for child in drawn:
        assert all(genes_of(child)[gene] in choices for gene, choices in GENES.items())
        assert not child.compat
    assert len(set(drawn)) > 200


def test_tournaments_favour_the_best():
    population = members(20)
    rank = {member.function: int(member.value) for member in population}
    rng = random.Random(0)

    def mean_rank(tournament):
        winners = [f for _ in range(300) for f in Evolution(20, tournament).parents(population, rng)]
        return sum(rank[f] for f in winners) / len(winners)

    assert mean_rank(5) == pytest.approx(20 / 6, abs=0.8)
    assert mean_rank(1) == pytest.approx(9.5, abs=1)


def test_a_child_resembles_its_parents():
    population = members(5)
    rng = random.Random(0)
    without = Evolution(5, crossover=0.0, mutation=0.0)
    for _ in range(50):
        child = genes_of(without.child(population, rng))
        stages = [{"pre 1", "pre 2"}, *({gene} for gene in list(GENES)[2:])]
        nearest = min(
            sum(any(child[g] != genes_of(m.function)[g] for g in stage) for stage in stages) for m in population
        )
        # At least one stage changes, and nothing else where no rate says so.
        assert nearest == 1


def test_what_was_drawn_is_drawn_again_only_in_need():
    rng = random.Random(0)
    first = Evolution().unseen((), set(), random.Random(0))
    assert Evolution().unseen((), {tuple(genes_of(first).values())}, random.Random(0)) != first

    class Everything(set):
        def __contains__(self, _):
            return True

    assert genes_of(Evolution().unseen((), Everything(), rng)).keys() == GENES.keys()


SMALL = Evolution(8)


def grow(study, trials, evolution=SMALL, seed=0):
    """A search whose loss is lower for lower spreads, and whose allocations are functions of few genes."""
    past = TrialHistory()
    for _ in range(trials):
        study.sampler = EvolutionSampler(seed * 1000 + studies.counted(study), evolution, past)
        trial = study.ask()
        function = suggest(trial)
        value = function.spread + (function.sign > 0) * 0.5 + len(function.pre) * 0.1
        stopped = value > 0.4
        levels = [round(function.spread * 100), function.sign, *map(len, function.pre)]
        known = past.update(study).known.get(tuple(levels))
        origin = "sampler" if known is None else "repeat"
        losses = [value] * (2 if stopped else 4) if known is None else []
        trial.set_user_attr(FOUND, {"levels": levels, "losses": losses, "estimate": value, "origin": origin})
        state = optuna.trial.TrialState.PRUNED if stopped else optuna.trial.TrialState.COMPLETE
        study.tell(trial, None if stopped else value, state=state)
    return [trial.params for trial in study.trials if trial.state.name != "FAIL"]


def new_study():
    return studies.open_study("s", studies.MEMORY, {})


def test_evolution_ends_up_lower_than_random_draws():
    def last(evolution):
        study = new_study()
        grow(study, 120, evolution)
        return [t.user_attrs[FOUND]["estimate"] for t in study.trials[-40:]]

    evolved, drawn = last(Evolution(8)), last(None)
    assert sum(evolved) < 0.7 * sum(drawn)


def test_a_seed_and_a_position_decide_a_trial():
    assert grow(new_study(), 30) == grow(new_study(), 30)
    assert grow(new_study(), 30) != grow(new_study(), 30, seed=1)


def test_the_past_is_read_once_and_as_from_the_start():
    study = new_study()
    grow(study, 25)
    past = TrialHistory().update(study)
    lost = study.ask()
    grow(study, 10)
    study.tell(lost, state=optuna.trial.TrialState.FAIL)
    later, anew = past.update(study), TrialHistory().update(study)
    assert later.known == anew.known
    assert (later.since, later.best, later.drawn) == (anew.since, anew.best, anew.drawn)
    assert later.drawn == {tuple(t.params[gene] for gene in GENES) for t in study.trials if t.state.name != "FAIL"}
    best = min(t.value for t in study.trials if t.state.name == "COMPLETE")
    assert later.best.estimate == best
    assert later.since == sum(t.number > later.best.number for t in study.trials if t.state.name != "FAIL")


def test_the_population_are_the_best_distinct_allocations():
    study = new_study()
    grow(study, 60)
    sampler = EvolutionSampler(0, Evolution(8))
    population = sampler.get_population(study, 60)
    levels = [tuple(t.user_attrs[FOUND]["levels"]) for t in population]
    assert len(population) == len(set(levels)) == 8
    values = [t.user_attrs[FOUND]["estimate"] for t in population]
    assert values == sorted(values)
    every = {tuple(t.user_attrs[FOUND]["levels"]): t.user_attrs[FOUND]["estimate"] for t in study.trials}
    assert values == sorted(every.values())[:8]


def test_a_parameter_that_is_no_gene_is_refused():
    study = new_study()
    study.sampler = EvolutionSampler(0, Evolution())
    with pytest.raises(ValueError, match="'x' is no gene of an allocation function"):
        study.ask().suggest_float("x", 0, 1)
