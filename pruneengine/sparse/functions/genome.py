"""Functions at random, changed and crossed: what an evolution over allocation functions proposes.

The genome is ours (DSA names mutation and crossover and gives no rates): the pre operations, the reduction, the
transform, the post operation, λ and the sign are one stage each.
"""

from __future__ import annotations

import dataclasses
import random

from pruneengine.common.validation import require_within
from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.functions.names import POST, PRE, REDUCE

SPREADS = tuple(step / 100 for step in range(5, 13))
STAGES = ("pre", "reduce", "transform", "post", "spread", "sign")
_PRE = tuple(name for name in PRE if name != "no")
# Without a reduction, candidates that differ after it share no work; most are a pre operation and a mean as well.
_REDUCE = tuple(name for name in REDUCE if name != "no")


def random_function(rng: random.Random) -> Function:
    """Any function of the search space, in the safe reading; none, one or two pre operations equally often."""
    return Function(**{stage: _draw(stage, rng) for stage in STAGES})


def mutate(function: Function, rng: random.Random, rate: float = 0.3) -> Function:
    """The function with every stage another with probability ``rate``, at least one, in the safe reading.

    Raises:
        ValueError: a rate outside of [0, 1].
    """
    require_within("rate", rate, 0, 1)
    chosen = [stage for stage in STAGES if rng.random() < rate] or [rng.choice(STAGES)]
    changes = {stage: _other(stage, getattr(function, stage), rng) for stage in chosen}
    return dataclasses.replace(function, **changes, compat=False)


def crossover(a: Function, b: Function, rng: random.Random) -> Function:
    """The stages of ``a`` up to a point between two stages, then those of ``b``; in the safe reading."""
    point = rng.randrange(1, len(STAGES))
    return Function(**{stage: getattr(a if i < point else b, stage) for i, stage in enumerate(STAGES)})


def _draw(stage: str, rng: random.Random) -> object:
    if stage == "pre":
        return tuple(rng.choice(_PRE) for _ in range(rng.randrange(3)))
    menus = {"reduce": _REDUCE, "transform": POST, "post": POST, "spread": SPREADS, "sign": (1, -1)}
    return rng.choice(menus[stage])


def _other(stage: str, value: object, rng: random.Random) -> object:
    while (drawn := _draw(stage, rng)) == value:
        pass
    return drawn
