"""Search dimension of uniform plans: the KV groups removed from every layer; MLP channels make up the ratio."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pruneengine.common.errors import InputError
from pruneengine.model import Group, Structure
from pruneengine.structured.budget import most_of

# A tenth of every group stays: the rest of a layer should still be able to work.
CAP = 0.9


def legal_heads(structure: Structure, ratio: float, kinds: Iterable[str] = ("heads", "mlp")) -> range:
    """Return the numbers of KV groups per layer with which channels can meet the ratio and keep a tenth.

    Args:
        structure: the model's structure, with layers of equal width.
        ratio: fraction of the prunable parameters of ``kinds``, in (0, 1).
        kinds: "heads", "mlp" or both; heads alone give the number nearest to the ratio.

    Returns:
        The legal numbers, before channels are rounded.

    Raises:
        ValueError: other kinds, layers of different width, or a ratio that no count can reach.
    """
    kinds = width_kinds(kinds)
    budget = budget_of(structure, ratio, kinds)
    heads, channels = _by_kind(structure, kinds)
    if not channels:
        nearest = min(round(ratio * heads[0].units), heads[0].units - 1)
        if nearest == 0:
            raise InputError(f"ratio {ratio:g} removes nothing: a layer has {heads[0].units} KV groups")
        return range(nearest, nearest + 1)
    most = heads[0].units - 1 if heads else 0
    cost = sum(g.unit_params for g in heads)
    # Half a parameter of slack: a ratio is a float.
    legal = [k for k in range(most + 1) if -0.5 <= budget - k * cost <= available(channels) + 0.5]
    if not legal:
        reach = (most * cost + available(channels)) / structure.prunable_params(kinds)
        raise InputError(
            f"ratio {ratio:g} is out of reach of layers of one width: with up to {most} KV groups a layer and "
            f"{CAP:g} of its channels they give at most {reach:.3f}"
        )
    return range(legal[0], legal[-1] + 1)


def uniform_ratios(
    structure: Structure, ratio: float, kv_groups: int, kinds: Iterable[str] = ("heads", "mlp")
) -> dict[str, float]:
    """Return the ratios under which :func:`make_plan` takes ``kv_groups`` of every layer in shape "uniform".

    Args:
        structure: the model's structure, with layers of equal width.
        ratio: fraction of the prunable parameters of ``kinds``, in (0, 1).
        kv_groups: KV groups that every layer gives, one of :func:`legal_heads`.
        kinds: "heads", "mlp" or both.

    Returns:
        ``{group name: ratio}``; the channels' ratio meets the target exactly, before they are rounded.

    Raises:
        ValueError: a number that is not legal; the message names the legal ones.
    """
    kinds = width_kinds(kinds)
    legal = legal_heads(structure, ratio, kinds)
    if kv_groups not in legal:
        raise InputError(f"kv_groups {kv_groups!r} is not legal at ratio {ratio:g}; choose from {list(legal)}")
    heads, channels = _by_kind(structure, kinds)
    rest = max(0.0, budget_of(structure, ratio, kinds) - kv_groups * sum(g.unit_params for g in heads))
    of_channels = rest / sum(g.params for g in channels) if channels else 0.0
    return {g.name: kv_groups / g.units for g in heads} | {g.name: of_channels for g in channels}


def width_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds; raise ValueError for kinds of units that layers do not give in part."""
    kinds = tuple(kinds)
    if not kinds or set(kinds) - {"heads", "mlp"}:
        raise InputError(f"kinds must be heads, mlp or both, got {kinds}")
    return kinds


def budget_of(structure: Structure, ratio: float, kinds: tuple[str, ...]) -> float:
    """Return the number of parameters to remove: a ratio in (0, 1) of the prunable parameters of the kinds."""
    if not 0 < ratio < 1:
        raise InputError(f"ratio must lie in (0, 1), got {ratio}")
    return ratio * structure.prunable_params(kinds)


def available(groups: Sequence[Group]) -> float:
    """Return the number of parameters that groups can give when each keeps a tenth, and one unit."""
    return sum(most_of(g, CAP) * g.params for g in groups)


def _by_kind(structure: Structure, kinds: tuple[str, ...]) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    heads, channels = (structure.of_kind({kind} & set(kinds)) for kind in ("heads", "mlp"))
    for part in dict.fromkeys(g.part for g in (*heads, *channels)):
        if len(widths := sorted({g.units for g in (*heads, *channels) if g.part == part})) > 1:
            raise InputError(f"layers of one width are needed, but {part} have {widths} units")
    return heads, channels
