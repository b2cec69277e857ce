"""Where unstructured pruning would prune: the finest view of how much each group can spare."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pruneengine import ops
from pruneengine.calibration.statistics import Statistics
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
    """The fraction of each group's weights among the smallest ``ratio`` of all weights, by Wanda's score.

    One threshold on ``|W| * norm`` (Sun et al. 2024, eq. 1; norm: the L2 norm of the input channel) over all matrices
    of the chosen kinds and layers. Weights of equal score at the threshold all count. HyWIA's abstract starts from the
    observation that this profile differs from that of structured scores; allocating by it is ours.

    Args:
        model: the dense model.
        structure: its structure.
        statistics: with the quantity "squares".
        ratio: fraction of the weights, in (0, 1).
        kinds: "heads" and "mlp"; "layers" stands for both.
        layers: the decoder layers that are compared; all by default.

    Returns:
        ``{group name: fraction}``; weighted by the groups' weights they add up to ``ratio``.

    Raises:
        ValueError: statistics without "squares".
    """
    if "squares" not in statistics.tensors:
        collected = ", ".join(sorted(statistics.tensors)) or "none"
        raise ValueError(f"allocation 'unstructured' needs the quantity 'squares'; collected: {collected}")
    groups = structure.scored(kinds, range(structure.num_layers) if layers is None else layers)
    matrices = {
        group.name: [m.select(get_linear(model, m.module).weight.detach()) for m in group.members] for group in groups
    }
    norms = {
        group.name: [
            statistics.mean("squares", member.site).sqrt().to(weight.device)
            for member, weight in zip(group.members, matrices[group.name], strict=True)
        ]
        for group in groups
    }
    everything = [weight for group in groups for weight in matrices[group.name]]
    total = sum(weight.numel() for weight in everything)
    if not total:
        return {}
    rank = min(max(round(ratio * total), 1), total)
    threshold = ops.kth_value_global(everything, rank, [norm for group in groups for norm in norms[group.name]])
    profile = {}
    for group in groups:
        pairs = list(zip(matrices[group.name], norms[group.name], strict=True))
        above = sum(int(ops.block_moments(weight, norm, thresholds=threshold)[1]) for weight, norm in pairs)
        profile[group.name] = 1 - above / sum(weight.numel() for weight, _ in pairs)
    return profile
