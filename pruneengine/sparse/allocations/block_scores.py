"""Moments, outlier counts and histograms of the scores of every matrix, without storing the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.calibration.statistics import Statistics
from pruneengine.common.progress import track
from pruneengine.model import get_linear
from pruneengine.sparse.matrices import Matrix

_LEAST, _GREATEST = ops.MOMENTS.index("min"), ops.MOMENTS.index("max")


@dataclass(frozen=True)
class ScoreMoments:
    """Moments, counts and a histogram for the scores of each of M matrices or decoder layers.

    Attributes:
        moments: float64 ``[M, 12]``, named by :data:`pruneengine.ops.MOMENTS`.
        above: int64 ``[M, K]``: number of scores above each of ``thresholds`` times the mean score of the decoder
            layer.
        histogram: int64 ``[M, 2048]`` (:func:`pruneengine.ops.histogram_edges`).
        names: module paths of the linears, or ``layers.<i>`` for decoder layers.
        layers: index of the decoder layer of each.
        sizes: number of weights of each.
        thresholds: K multiples of a decoder layer's mean score.
    """

    moments: Tensor
    above: Tensor
    histogram: Tensor
    names: tuple[str, ...]
    layers: tuple[int, ...]
    sizes: tuple[int, ...]
    thresholds: tuple[float, ...] = ()

    def column(self, name: str) -> Tensor:
        """Return one of :data:`pruneengine.ops.MOMENTS` by name: float64 ``[M]``."""
        return self.moments[:, ops.MOMENTS.index(name)]

    def of_layers(self) -> ScoreMoments:
        """Return the same for decoder layers: the matrices of each taken together, in the layers' order."""
        layers = sorted(set(self.layers))
        places = [[place for place, own in enumerate(self.layers) if own == layer] for layer in layers]
        moments = torch.stack([self.moments[rows].sum(0) for rows in places])
        moments[:, _LEAST] = torch.stack([self.column("min")[rows].min() for rows in places])
        moments[:, _GREATEST] = torch.stack([self.column("max")[rows].max() for rows in places])
        return ScoreMoments(
            moments,
            torch.stack([self.above[rows].sum(0) for rows in places]),
            torch.stack([self.histogram[rows].sum(0) for rows in places]),
            tuple(f"layers.{layer}" for layer in layers),
            tuple(layers),
            tuple(sum(self.sizes[place] for place in rows) for rows in places),
            self.thresholds,
        )


def collect_scores(
    model: nn.Module, matrices: Sequence[Matrix], statistics: Statistics | None, thresholds: Sequence[float] = ()
) -> ScoreMoments:
    """Collect the moments of every matrix's scores, reading each weight once (twice with ``thresholds``).

    Args:
        model: dense; float32, float16 or bfloat16 weights, on any device.
        matrices: to read.
        statistics: with "squares": the scores are Wanda's, ``|W| * norm``. None: the scores are ``|W|``.
        thresholds: multiples of the mean score of a decoder layer; the scores above each are counted exactly.

    Returns:
        Tensors on the CPU, one row per matrix.

    Raises:
        ValueError: the statistics have no "squares", or there are more than 16 thresholds.
    """
    read = [_read(model, matrix, statistics, ()) for matrix in track(matrices, "scores")]
    moments, above, histogram = (torch.stack(parts) for parts in zip(*read, strict=True))
    scores = ScoreMoments(
        moments,
        above,
        histogram,
        tuple(matrix.name for matrix in matrices),
        tuple(matrix.layer for matrix in matrices),
        tuple(matrix.numel for matrix in matrices),
    )
    if not thresholds:
        return scores
    blocks = scores.of_layers()
    means = dict(zip(blocks.layers, (blocks.column("sum") / blocks.column("count")).tolist(), strict=True))
    counts = [
        _read(model, matrix, statistics, [multiple * means[matrix.layer] for multiple in thresholds])[1]
        for matrix in track(matrices, "outliers")
    ]
    return replace(scores, above=torch.stack(counts), thresholds=tuple(float(multiple) for multiple in thresholds))


def _read(model: nn.Module, matrix: Matrix, statistics: Statistics | None, bounds: Sequence[float]) -> list[Tensor]:
    weight = get_linear(model, matrix.name).weight.detach()
    norm = None if statistics is None else statistics.input_norm(matrix.site).to(weight.device)
    return [part.cpu() for part in ops.block_moments(weight, norm, thresholds=bounds)]
