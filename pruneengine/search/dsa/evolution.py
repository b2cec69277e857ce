"""Evolution of allocation functions: genes, and how a child comes of the best so far."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.functions.genome import SPREADS, crossover, mutate, random_function
from pruneengine.sparse.functions.names import POST, PRE, REDUCE

# A gene a categorical parameter of the study.
GENES: dict[str, tuple] = {
    "pre 1": PRE,
    "pre 2": PRE,
    "reduce": tuple(name for name in REDUCE if name != "no"),
    "transform": POST,
    "post": POST,
    "spread": SPREADS,
    "sign": (1, -1),
}
# Children that were drawn before are drawn again, so often.
ATTEMPTS = 20


@dataclass(frozen=True)
class Member:
    """One of the population: a function, and the loss of the allocation that it gives (or an estimate of it)."""

    function: Function
    value: float


@dataclass(frozen=True)
class Evolution:
    """How children are made (DSA gives no rates; these are ours).

    Attributes:
        population: the best so many are parents; until there are as many, functions are drawn at random.
        tournament: the best of so many, drawn with replacement, is a parent.
        crossover: probability of two parents.
        mutation: probability that a stage changes; at least one does.
    """

    population: int = 50
    tournament: int = 5
    crossover: float = 0.5
    mutation: float = 0.3

    def parents(self, population: Sequence[Member], rng: random.Random) -> tuple[Function, Function]:
        """The winners of two tournaments."""
        one, other = (
            min(rng.choices(population, k=self.tournament), key=lambda member: member.value) for _ in range(2)
        )
        return one.function, other.function

    def child(self, population: Sequence[Member], rng: random.Random) -> Function:
        """A function of the search space; at random while the population is not complete."""
        if len(population) < self.population:
            return random_function(rng)
        one, other = self.parents(population, rng)
        crossed = crossover(one, other, rng) if rng.random() < self.crossover else one
        return mutate(crossed, rng, self.mutation)

    def unseen(self, population: Sequence[Member], drawn: Collection[tuple], rng: random.Random) -> Function:
        """A child whose genes are not among those drawn before, or the last of :data:`ATTEMPTS`."""
        for _ in range(ATTEMPTS):
            child = self.child(population, rng)
            if tuple(genes_of(child).values()) not in drawn:
                break
        return child


def genes_of(function: Function) -> dict[str, Any]:
    """A value of every gene; the inverse of :func:`function_of`."""
    first, second = (*function.pre, "no", "no")[:2]
    rest = {gene: getattr(function, gene) for gene in ("reduce", "transform", "post", "spread", "sign")}
    return {"pre 1": first, "pre 2": second} | rest


def function_of(genes: Mapping[str, Any]) -> Function:
    """The function of a study's parameters."""
    rest = {gene: genes[gene] for gene in ("reduce", "transform", "post", "spread", "sign")}
    return Function(pre=(genes["pre 1"], genes["pre 2"]), **rest)
