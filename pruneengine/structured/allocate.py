"""Allocation: scores and a target -> the ratio of every group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pruneengine.common.errors import InputError
from pruneengine.model import KINDS, Group, Structure, part_of
from pruneengine.structured.budget import rank_to_budget, scale_to_budget
from pruneengine.structured.scores.score import Scores
from pruneengine.structured.whole_experts import lowest_experts, spare_experts, spread_experts

ALLOCATIONS = ("uniform", "global", "unstructured")
PROTOCOLS = ("engine", "llm-pruner")


def allocate(
    structure: Structure,
    scores: Scores,
    ratio: float,
    *,
    kinds: Iterable[str] = ("heads", "mlp"),
    allocation: str = "uniform",
    layers: range | None = None,
    protocol: str = "engine",
    profile: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Spread a target over the groups.

    ``ratio`` is the fraction of the prunable parameters of ``kinds`` over the whole model; groups outside ``layers``
    get nothing and the others more. Under ``protocol="llm-pruner"`` it is the ratio inside every group of ``layers``.

    Args:
        structure: the model's structure.
        scores: scores of its units.
        ratio: the target, in (0, 1).
        protocol: "engine" or "llm-pruner".
        kinds: "heads", "mlp", "layers" and "experts". Together with other kinds, whole layers take up to half of the
            target, the least important layers first; the other kinds make up the rest. Whole experts and widths share
            a target in the same way.
        allocation: "uniform" gives every group the same ratio; "global" ranks all units by score per parameter;
            "unstructured" follows ``profile``.
        profile: the ratio of every group under another criterion, as from :func:`sparsity_profile`; a common factor
            brings it to the target.
        layers: the decoder layers that may be touched; all by default.

    Returns:
        ``{group name: ratio}``, ``{"layers.<i>": 1.0}`` for every decoder layer that goes as a whole, and
        ``{"layers.<i>.experts": ratio}`` for the part of a layer's experts that go as a whole.

    Raises:
        ValueError: the target is more than the chosen kinds and layers can give, a profile is missing, or experts are
            asked of a model that has none.
    """
    kinds, layers = tuple(kinds), layers if layers is not None else range(structure.num_layers)
    _check(structure, kinds, allocation, protocol)
    groups = structure.of_kind(kinds, layers)
    if protocol == "llm-pruner":
        return {group.name: ratio for group in groups}
    target = _Target(structure, ratio, kinds, allocation, layers)
    whole, rest = _whole_layers(target, scores)
    groups = tuple(g for g in groups if f"layers.{g.layer}" not in whole)
    experts, lost, rest = _whole_experts(target, scores, rest, [i for i in layers if f"layers.{i}" not in whole])
    spared = [g for g in groups if g.name in lost]
    groups = tuple(g for g in groups if g.name not in lost)
    _check_reach(target, groups, rest, experts)
    if not groups:
        return whole | experts
    widths = _widths(groups, scores, rest, allocation, profile)
    # Experts that a plan of equal numbers keeps after all lose channels as the others do.
    others = [widths[g.name] for g in groups if g.part == "experts.mlp"] if spared else []
    return whole | experts | widths | {g.name: sum(others) / len(others) for g in spared}


@dataclass(frozen=True)
class _Target:
    """The arguments of :func:`allocate` that make up the target."""

    structure: Structure
    ratio: float
    kinds: tuple[str, ...]
    allocation: str
    layers: range

    @property
    def budget(self) -> float:
        """Parameters to remove."""
        return self.ratio * self.structure.prunable_params(self.kinds)


def _check(structure: Structure, kinds: tuple[str, ...], allocation: str, protocol: str) -> None:
    """Raise ValueError if a choice is unknown or the model has no such units."""
    if allocation not in ALLOCATIONS:
        raise InputError(f"unknown allocation {allocation!r}; choose from {', '.join(ALLOCATIONS)}")
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    if not kinds or set(kinds) - set(KINDS):
        raise InputError(f"kinds must be one or more of {', '.join(KINDS)}, got {kinds}")
    if "experts" in kinds and not structure.experts_per_token:
        raise InputError(f"kinds name experts, and {structure.model_type} has none")


def _whole_layers(target: _Target, scores: Scores) -> tuple[dict[str, float], float]:
    """Return the layers that go, and the rest of the budget."""
    structure, budget = target.structure, target.budget
    if "layers" not in target.kinds:
        return {}, budget
    share = budget / 2 if len(target.kinds) > 1 else budget
    dropped = _lowest_layers(structure, scores, share, target.layers)
    return {f"layers.{i}": 1.0 for i in dropped}, budget - sum(structure.layer_params[i] for i in dropped)


def _lowest_layers(structure: Structure, scores: Scores, share: float, layers: range) -> list[int]:
    """Return the least important layers whose parameters come nearest to the share; one layer always stays."""
    order = sorted(layers, key=lambda i: float(scores.layers[i]))[: structure.num_layers - 1]
    dropped: list[int] = []
    total = 0
    for index in order:
        if total + structure.layer_params[index] / 2 > share:
            break
        dropped.append(index)
        total += structure.layer_params[index]
    return dropped


def _whole_experts(
    target: _Target, scores: Scores, budget: float, layers: Sequence[int]
) -> tuple[dict[str, float], set[str], float]:
    """Return the ratio of experts that go in each layer, the names of their groups, and the rest of the budget."""
    if "experts" not in target.kinds:
        return {}, set(), budget
    structure, params = target.structure, target.structure.expert_params
    share = budget / 2 if {"heads", "mlp"} & set(target.kinds) else budget
    counts = spread_experts(structure, scores, share, layers, even=target.allocation == "uniform")
    lost = [(i, e) for i, lowest in lowest_experts(structure, scores, counts).items() for e in lowest]
    names = {structure.experts(i)[e].name for i, e in lost}
    ratios = {f"layers.{i}.experts": n / len(params[i]) for i, n in counts.items()}
    return ratios, names, budget - sum(params[i][e] for i, e in lost)


def _check_reach(target: _Target, groups: Sequence[Group], rest: float, experts: Mapping[str, float]) -> None:
    """Raise ValueError if the groups cannot give the rest of the budget after whole layers and experts."""
    structure, kinds, layers = target.structure, target.kinds, target.layers
    # One unit of every group must stay, and a whole layer can be off by half of one.
    available = sum((g.units - 1) * g.unit_params for g in groups)
    slack = max(structure.layer_params) / 2 if "layers" in kinds and not groups else 0
    if "experts" in kinds and not groups:
        # An even share takes one expert of every layer at a time.
        step = max(map(max, structure.expert_params)) * (len(layers) if target.allocation == "uniform" else 1)
        slack = max(slack, step / 2)
    if rest <= available + slack:
        return
    most = (target.budget - rest + available) / structure.prunable_params(kinds)
    why = [structure.undivided_heads] if "heads" in kinds and structure.undivided_heads else []
    if "experts" in kinds and not any(_spare(structure, name, ratio) for name, ratio in experts.items()):
        why.append(f"a token is sent to {structure.experts_per_token} experts, so as many stay in every layer")
    elif len(kinds) > 1 and (units := [kind for kind in ("layers", "experts") if kind in kinds]):
        why.append(f"whole {' and '.join(units)} take no more than half of what they share with others")
    reasons = f" ({'; '.join(why)})" if why else ""
    raise InputError(
        f"ratio {target.ratio:g} is out of reach: {', '.join(kinds)} in layers {layers.start}:{layers.stop} "
        f"can give at most {most:.3f}{reasons}"
    )


def _spare(structure: Structure, name: str, ratio: float) -> int:
    """Return the number of experts that ``layers.<i>.experts`` could lose beyond this ratio."""
    layer = part_of(name)[0]
    return spare_experts(structure, layer) - round(ratio * len(structure.expert_params[layer]))


def _widths(
    groups: Sequence[Group], scores: Scores, budget: float, allocation: str, profile: Mapping[str, float] | None
) -> dict[str, float]:
    """Return the ratio of every group, so that all together give the budget."""
    if allocation == "uniform":
        even = budget / sum(g.params for g in groups)
        return {group.name: even for group in groups}
    if allocation == "unstructured":
        profile = profile or {}
        if missing := [g.name for g in groups if g.name not in profile]:
            raise InputError(f"allocation 'unstructured' needs a profile; it holds no ratio for {missing[0]}")
        return scale_to_budget(groups, profile, budget)
    densities = {g.name: scores.groups[g.name].double() / g.unit_params for g in groups}
    return rank_to_budget(groups, densities, budget)
