"""Which allocations are pruned in full once the trials are over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pruneengine.common.progress import track
from pruneengine.search.dsa.allocator import Allocator
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.finals import Entrant
from pruneengine.search.dsa.objective import SparseObjective
from pruneengine.search.dsa.past import Known, Past


@dataclass(frozen=True)
class Lineup:
    """Entrants of the finals.

    Attributes:
        finalists: the fixed allocations, and the best by fast losses.
        spread: others, over the range of fast losses, for the correlation of fast and full ones.
        reserve: the best behind the finalists, for a fast loss that is no guide.
    """

    finalists: tuple[Entrant, ...]
    spread: tuple[Entrant, ...]
    reserve: tuple[Entrant, ...]


def line_up(
    fixed: Sequence[Entrant], past: Past, allocator: Allocator, objective: SparseObjective, config: DsaConfig
) -> Lineup:
    """Choose before anything is pruned: fast losses that are not known yet are the last that the objective is for.

    Args:
        fixed: entrants whatever was found.
        past: of all trials.
        allocator: of the search.
        objective: likewise.
        config: how many there are of each.
    """

    def entrant(known: Known, fast: float) -> Entrant:
        return Entrant(f"trial {known.number}", allocator.of_function(known.function), fast, known.function)

    complete = sorted((k for k in past.known.values() if k.complete), key=lambda k: (k.estimate, k.number))
    best = [entrant(known, known.estimate) for known in complete[: 2 * config.finalists]]
    finalists, reserve = (*fixed, *best[: config.finalists]), best[config.finalists :]
    others = list(past.known.values())
    taken = [known.estimate for known in complete[: config.finalists]]
    chosen = spread_over(max(0, config.correlate - len(finalists)), [known.estimate for known in others], taken)
    # Of an allocation that was stopped, the fast loss is known on a few segments only.
    spread = [
        entrant(others[place], objective.evaluate(others[place].levels).mean) for place in track(chosen, "fast losses")
    ]
    return Lineup(finalists, tuple(each for each in spread if math.isfinite(each.fast)), tuple(reserve))


def spread_over(count: int, values: Sequence[float], taken: Sequence[float]) -> list[int]:
    """Positions of up to ``count`` of the values, evenly over their ranks and none of them taken."""
    ranked = [place for place in sorted(range(len(values)), key=lambda p: values[p]) if values[place] not in taken]
    if count >= len(ranked):
        return ranked
    # The last of the ranks would be the one whose loss tells least: of a model that is destroyed.
    return [ranked[int((index + 0.5) * len(ranked) / count)] for index in range(count)]
