"""Global score threshold: the number of weights of each matrix that one threshold over all matrices removes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.common.errors import InputError

TIES = ("all", "shared")


def removed_by_threshold(
    weights: Sequence[Tensor], norms: Sequence[Tensor], number: float, *, ties: str
) -> list[float]:
    """Return how many weights of each matrix are among the given number of smallest scores ``|W| * norm``.

    Args:
        weights: matrices ``[rows, C]`` of one dtype, on one device.
        norms: float32 ``[C]`` per matrix.
        number: weights to remove from all matrices together, above 0 and at most all of them.
        ties: the rule for scores that equal the threshold (a bfloat16 model has many). "all" removes every one of
            them, so that more than ``number`` may go. "shared" removes the same part of them from every matrix, so that
            the sum is ``number``; a matrix then loses a fraction of a weight.

    Raises:
        ValueError: an unknown rule for ties.
    """
    if ties not in TIES:
        raise InputError(f"unknown rule for ties {ties!r}; choose from {', '.join(TIES)}")
    threshold = ops.kth_value_global(weights, math.ceil(number), norms)
    # Scores above the next smaller number are the threshold or larger.
    bounds = torch.cat([threshold.nextafter(threshold.new_tensor(-math.inf)), threshold])
    counts = [
        ops.block_moments(weight, norm, thresholds=bounds)[1].tolist()
        for weight, norm in zip(weights, norms, strict=True)
    ]
    below = [weight.numel() - equal_or_above for weight, (equal_or_above, _) in zip(weights, counts, strict=True)]
    equal = [equal_or_above - above for equal_or_above, above in counts]
    part = 1.0 if ties == "all" else (number - sum(below)) / sum(equal)
    return [less + part * same for less, same in zip(below, equal, strict=True)]
