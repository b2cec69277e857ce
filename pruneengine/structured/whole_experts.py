"""Whole experts as units, which go with their rows of the router.

An expert is worth what its channels are worth together. Of every layer stay at least as many as a token is sent to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneengine.model import Structure
from pruneengine.structured.scores.score import Scores


def expert_scores(structure: Structure, scores: Scores, layer: int) -> Tensor:
    """Return the sum of the units' scores of every expert of a layer: float64 ``[experts]``."""
    sums = [scores.groups[group.name].double().sum() for group in structure.experts(layer)]
    return torch.stack(sums) if sums else torch.empty(0, dtype=torch.float64)


def spare_experts(structure: Structure, layer: int) -> int:
    """Return the number of experts that a layer can lose."""
    return max(0, len(structure.expert_params[layer]) - structure.experts_per_token)


def lowest_experts(structure: Structure, scores: Scores, counts: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """Return the given number of least important experts of each layer: ascending indices by layer."""
    lowest = {}
    for layer, count in counts.items():
        order = expert_scores(structure, scores, layer).argsort(stable=True)[:count]
        lowest[layer] = tuple(sorted(order.tolist()))
    return lowest


def spread_experts(
    structure: Structure, scores: Scores, budget: float, layers: Sequence[int], *, even: bool
) -> dict[int, int]:
    """Return the number of experts that every layer loses, so that their parameters come nearest to the budget.

    Args:
        structure: the model's structure.
        scores: scores of its units.
        budget: parameters to remove.
        layers: the layers that may lose experts.
        even: True removes the same number from every layer. False removes experts of all layers in the order of their
            score per parameter, the lowest first.
    """
    spare = {layer: spare_experts(structure, layer) for layer in layers}
    if even:
        a_round = sum(sum(params) / len(params) for params in (structure.expert_params[i] for i in layers))
        return dict.fromkeys(layers, min(round(budget / a_round), *spare.values()) if a_round else 0)
    ranked: list[tuple[float, int, float]] = []
    for layer in layers:
        params = torch.tensor(structure.expert_params[layer], dtype=torch.float64)
        density = expert_scores(structure, scores, layer) / params
        lowest = density.sort(stable=True)
        ranked += [
            (float(value), layer, float(params[index]))
            for value, index in zip(lowest.values[: spare[layer]], lowest.indices, strict=False)
        ]
    counts, spent = dict.fromkeys(layers, 0), 0.0
    for _density, layer, size in sorted(ranked):
        if spent + size / 2 > budget:
            break
        counts[layer] += 1
        spent += size
    return counts
