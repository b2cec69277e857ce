"""Evolution of allocation functions: genes, crossover, mutation, and children of the best functions so far."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneengine.common.validation import require_within
from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.functions.names import POST, PRE, REDUCE

SPREADS = tuple(step / 100 for step in range(5, 13))
STAGES = ("pre", "reduce", "transform", "post", "spread", "sign")
# Number of children drawn, at most, until one has genes that were not drawn before.
ATTEMPTS = 20

_PRE = tuple(name for name in PRE if name != "no")
# Without a reduction, candidates that differ after it share no work; most are a pre operation and a mean as well.
_REDUCE = tuple(name for name in REDUCE if name != "no")

# Values of each gene, a categorical parameter of the study.
GENES: dict[str, tuple[Any, ...]] = {
    "pre 1": PRE,
    "pre 2": PRE,
    "reduce": _REDUCE,
    "transform": POST,
    "post": POST,
    "spread": SPREADS,
    "sign": (1, -1),
}


@dataclass(frozen=True)
class Member:
    """Member of the population: a function, and the loss of its allocation (or an estimate of it)."""

    function: Function
    value: float


@dataclass(frozen=True)
class Evolution:
    """Rates by which children are made (DSA gives none; these are ours).

    Attributes:
        population: number of the best members that are parents; until there are as many, functions are random.
        tournament: number of members drawn, with replacement, for each parent; the best one becomes it.
        crossover: probability of two parents.
        mutation: probability that a stage changes; at least one does.
    """

    population: int = 50
    tournament: int = 5
    crossover: float = 0.5
    mutation: float = 0.3

    def parents(self, population: Sequence[Member], rng: random.Random) -> tuple[Function, Function]:
        """Return the winners of two tournaments."""
        one, other = (
            min(rng.choices(population, k=self.tournament), key=lambda member: member.value) for _ in range(2)
        )
        return one.function, other.function

    def child(self, population: Sequence[Member], rng: random.Random) -> Function:
        """Return a function of the search space; a random one while the population is not complete."""
        if len(population) < self.population:
            return random_function(rng)
        one, other = self.parents(population, rng)
        crossed = crossover(one, other, rng) if rng.random() < self.crossover else one
        return mutate(crossed, rng, self.mutation)

    def unseen(self, population: Sequence[Member], drawn: Collection[tuple[Any, ...]], rng: random.Random) -> Function:
        """Return a child whose genes were not drawn before, or the last of :data:`ATTEMPTS` children."""
        for _ in range(ATTEMPTS):
            child = self.child(population, rng)
            if tuple(genes_of(child).values()) not in drawn:
                break
        return child


def random_function(rng: random.Random) -> Function:
    """Return any function of the search space, in the safe reading; none, one or two pre operations equally often."""
    return Function(**{stage: _draw(stage, rng) for stage in STAGES})


def mutate(function: Function, rng: random.Random, rate: float = 0.3) -> Function:
    """Return the function with each stage changed with probability ``rate``, at least one, in the safe reading.

    Raises:
        ValueError: a rate outside of [0, 1].
    """
    require_within("rate", rate, 0, 1)
    chosen = [stage for stage in STAGES if rng.random() < rate] or [rng.choice(STAGES)]
    changes: dict[str, Any] = {stage: _other(stage, getattr(function, stage), rng) for stage in chosen}
    return dataclasses.replace(function, **changes, compat=False)


def crossover(a: Function, b: Function, rng: random.Random) -> Function:
    """Return the stages of ``a`` up to a random point, then those of ``b``, in the safe reading."""
    point = rng.randrange(1, len(STAGES))
    return Function(**{stage: getattr(a if i < point else b, stage) for i, stage in enumerate(STAGES)})


def genes_of(function: Function) -> dict[str, Any]:
    """Return the value of every gene; the inverse of :func:`function_of`."""
    first, second = (*function.pre, "no", "no")[:2]
    rest = {gene: getattr(function, gene) for gene in ("reduce", "transform", "post", "spread", "sign")}
    return {"pre 1": first, "pre 2": second} | rest


def function_of(genes: Mapping[str, Any]) -> Function:
    """Return the function of a study's parameters."""
    rest = {gene: genes[gene] for gene in ("reduce", "transform", "post", "spread", "sign")}
    return Function(pre=(genes["pre 1"], genes["pre 2"]), **rest)


def _draw(stage: str, rng: random.Random) -> Any:
    if stage == "pre":
        return tuple(rng.choice(_PRE) for _ in range(rng.randrange(3)))
    return rng.choice(GENES[stage])


def _other(stage: str, value: Any, rng: random.Random) -> Any:
    while (drawn := _draw(stage, rng)) == value:
        pass
    return drawn
