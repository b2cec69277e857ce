"""What an allocation of the search must meet, and how far it may go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pruneengine.model import Group, Structure
from pruneengine.structured.allocate import most_of

# A tenth of every group stays: what is left of a layer should still be able to work.
CAP = 0.9


def width_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Refuse kinds of units other than those that layers give in part."""
    kinds = tuple(kinds)
    if not kinds or set(kinds) - {"heads", "mlp"}:
        raise ValueError(f"kinds must be heads, mlp or both, got {kinds}")
    return kinds


def budget_of(structure: Structure, ratio: float, kinds: tuple[str, ...]) -> float:
    """Parameters to remove: a ratio in (0, 1) of the prunable parameters of the kinds."""
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must lie in (0, 1), got {ratio}")
    return ratio * structure.prunable_params(kinds)


def available(groups: Sequence[Group]) -> float:
    """Parameters that groups can give when each keeps a tenth, and one unit."""
    return sum(most_of(g, CAP) * g.params for g in groups)
