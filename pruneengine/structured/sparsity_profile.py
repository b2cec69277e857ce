"""Sparsity profile: for each group, the fraction of its weights that unstructured Wanda pruning would remove.

Used as the ratios of groups by ``allocation="unstructured"``.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.calibration.threshold import removed_by_threshold
from pruneengine.common.errors import InputError
from pruneengine.model import Structure, get_linear


def sparsity_profile(
    model: nn.Module,
    structure: Structure,
    statistics: Statistics,
    ratio: float,
    *,
    kinds: Iterable[str] = ("heads", "mlp"),
    layers: range | None = None,
) -> dict[str, float]:
    """Return the fraction of each group's weights among the smallest ``ratio`` of all weights, by Wanda's score.

    One threshold on ``|W| * norm`` (Sun et al. 2024, eq. 1; norm: the L2 norm of the input channel) over all matrices
    of the chosen kinds and layers. Weights of equal score at the threshold all count. HyWIA's abstract starts from the
    observation that this profile differs from that of structured scores; allocating by it is ours.

    Args:
        model: the dense model.
        structure: its structure.
        statistics: with the quantity "squares".
        ratio: fraction of the weights, in (0, 1).
        kinds: "heads" and "mlp"; "layers" stands for both.
        layers: the decoder layers whose weights are compared; all by default.

    Returns:
        ``{group name: fraction}``; weighted by the groups' weights they add up to ``ratio``.

    Raises:
        ValueError: statistics without "squares".
    """
    if "squares" not in statistics.tensors:
        collected = ", ".join(sorted(statistics.tensors)) or "none"
        raise InputError(f"allocation 'unstructured' needs the quantity 'squares'; collected: {collected}")
    groups = structure.scored(kinds, range(structure.num_layers) if layers is None else layers)
    members = [(group.name, member) for group in groups for member in group.members]
    weights = [member.select(get_linear(model, member.module).weight.detach()) for _, member in members]
    norms = [
        statistics.input_norm(member.site).to(weight.device)
        for (_, member), weight in zip(members, weights, strict=True)
    ]
    total = sum(weight.numel() for weight in weights)
    if not total:
        return {}
    number = min(max(round(ratio * total), 1), total)
    removed = removed_by_threshold(weights, norms, number, ties="all")
    kept, size = (dict.fromkeys((group.name for group in groups), 0.0) for _ in range(2))
    for (name, _), weight, count in zip(members, weights, removed, strict=True):
        kept[name] += weight.numel() - count
        size[name] += weight.numel()
    return {name: 1 - kept[name] / size[name] for name in size}
