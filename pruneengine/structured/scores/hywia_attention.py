"""Learned attention of HyWIA: a few weights that decide, unit by unit, the share of the fine score in the blend.

The two normalised scores of a unit are two tokens; a query made of the unit's features attends to them. All groups of a
model share the weights. (HyWIA's abstract speaks of attention; the features and sizes are ours.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOKEN_FEATURES, UNIT_FEATURES, WIDTH = 3, 5, 4
# Natural logarithms of scores relative to their mean are cut off here, so that one outlier decides nothing.
_LOG_LIMIT = 4.0


@dataclass(frozen=True, eq=False)
class LearnedAttention:
    """Query and key projections, float64 ``[4, 5]`` and ``[4, 3]``."""

    query: Tensor
    key: Tensor

    @classmethod
    def initial(cls, seed: int = 0) -> LearnedAttention:
        """Return random queries and zero keys: an equal blend everywhere, from which a gradient leads away."""
        generator = torch.Generator().manual_seed(seed)
        query = torch.randn(WIDTH, UNIT_FEATURES, generator=generator, dtype=torch.float64)
        return cls(query / math.sqrt(UNIT_FEATURES), torch.zeros(WIDTH, TOKEN_FEATURES, dtype=torch.float64))

    def share(self, tokens: Tensor, units: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the fine score's share of each unit, ``[C]``, from :func:`features`."""
        keys, queries = tokens @ self.key.T, units @ self.query.T
        logits = (keys * queries[:, None]).sum(2) / (temperature * math.sqrt(WIDTH))
        return logits.softmax(1)[:, 1]


def features(coarse: Tensor, fine: Tensor, kind: str, depth: float) -> tuple[Tensor, Tensor]:
    """Return the features of a group for the attention, every entry in [-1, 1].

    Args:
        coarse: normalised scores ``[C]``.
        fine: normalised fine scores of the same units, ``[C]``.
        kind: "heads" or "mlp".
        depth: 0 for the first decoder layer, 1 for the last.

    Returns:
        ``(tokens, units)``, float64: ``[C, 2, 3]`` (log score, rank, coarse or fine) and ``[C, 5]`` (mean log
        score, mean rank, kind, depth, 1).
    """
    scores = torch.stack([coarse, fine], 1).double()
    logs = scores.clamp_min(math.exp(-_LOG_LIMIT)).log().clamp_max(_LOG_LIMIT) / _LOG_LIMIT
    places = torch.stack([_places(column) for column in scores.T], 1)
    side = torch.tensor([-1.0, 1.0], dtype=torch.float64).expand_as(logs)
    constant = torch.tensor([1.0 if kind == "mlp" else -1.0, 2 * depth - 1, 1.0], dtype=torch.float64)
    units = torch.cat([logs.mean(1, keepdim=True), places.mean(1, keepdim=True), constant.expand(len(scores), 3)], 1)
    return torch.stack([logs, places, side], 2), units


def average_ranks(values: Tensor) -> Tensor:
    """Return ascending ranks from 0, float64 ``[C]``; equal values share the mean of their ranks."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts + 1) / 2)[inverse]


def _places(values: Tensor) -> Tensor:
    ranks = average_ranks(values)
    return ranks / max(1, len(values) - 1) * 2 - 1
