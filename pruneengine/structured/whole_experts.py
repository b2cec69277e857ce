"""Whole experts as units: which of a layer's experts go, with their rows of the router.

An expert is worth what its channels are worth together. Of every layer stay at least as many as a token is sent to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneengine.model import Structure
from pruneengine.structured.scores.score import Scores


def expert_scores(structure: Structure, scores: Scores, layer: int) -> Tensor:
    """The sum over the units of every expert of a layer: float64 ``[experts]``."""
    sums = [scores.groups[group.name].double().sum() for group in structure.experts(layer)]
    return torch.stack(sums) if sums else torch.empty(0, dtype=torch.float64)


def spare_experts(structure: Structure, layer: int) -> int:
    """How many experts a layer can lose."""
    return max(0, len(structure.expert_params[layer]) - structure.experts_per_token)


def lowest_experts(structure: Structure, scores: Scores, counts: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """The least important experts, so many of each layer: ascending indices."""
    found = {}
    for layer, count in counts.items():
        order = expert_scores(structure, scores, layer).argsort(stable=True)[:count]
        found[layer] = tuple(sorted(order.tolist()))
    return found


def spread_experts(
    structure: Structure, scores: Scores, budget: float, layers: Sequence[int], *, even: bool
) -> dict[int, int]:
    """How many experts of every layer go, so that what they hold comes nearest to a budget of parameters.

    Args:
        structure: of the model.
        scores: of its units.
        budget: parameters to remove.
        layers: the layers that may lose experts.
        even: the same number in every layer; else the least worth per parameter go first, from wherever they are.
    """
    spare = {layer: spare_experts(structure, layer) for layer in layers}
    if even:
        a_round = sum(sum(params) / len(params) for params in (structure.expert_params[i] for i in layers))
        return dict.fromkeys(layers, min(round(budget / a_round), *spare.values()) if a_round else 0)
    ranked = []
    for layer in layers:
        params = torch.tensor(structure.expert_params[layer], dtype=torch.float64)
        density = expert_scores(structure, scores, layer) / params
        lowest = density.sort(stable=True)
        ranked += [
            (float(value), layer, float(params[index]))
            for value, index in zip(lowest.values[: spare[layer]], lowest.indices, strict=False)
        ]
    counts, spent = dict.fromkeys(layers, 0), 0.0
    for _value, layer, params in sorted(ranked):
        if spent + params / 2 > budget:
            break
        counts[layer] += 1
        spent += params
    return counts
