"""Objective of a search over sparsities: loss of one mask level per layer above the dense model's, piece by piece.

The model's weights are never written. While a layer runs, its linears compute with masked copies in a buffer that all
layers share. Losses are averaged over short segments, so that a paired test has observations after a few hundred
tokens: enough to tell most candidates from the best one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.data.samples import Samples
from pruneengine.model import Structure, get_linear
from pruneengine.model.masking import masked_weights
from pruneengine.search.masked_loss import MaskedLoss
from pruneengine.sparse.matrices import Matrix, of_layers


@dataclass(frozen=True)
class Fitness:
    """Loss of a candidate.

    Attributes:
        losses: mean token loss above the dense model's of every segment that was run, nats.
        stopped: whether the candidate was stopped before the last segment.
        seconds: time spent on "masks" and on the "forward" passes.
    """

    losses: tuple[float, ...]
    stopped: bool
    seconds: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean of the losses, nats."""
        return sum(self.losses) / len(self.losses)


class SparseObjective(MaskedLoss):
    """Paired loss of sparsity levels on fixed windows in a fixed order.

    Args:
        model: the dense model; it is left as it was after every evaluation.
        structure: structure of the model.
        matrices: its linears that are masked.
        codes: codes of their weights, of :func:`pruneengine.search.dsa.codes.quantile_masks`.
        windows: token windows ``[N, L]``, L at least 2. The first piece is one window; every further piece is as long
            as all before it together, up to ``batch`` windows.
        segment: tokens per segment, about: windows are cut into equal parts.
        batch: windows of the longest pieces.
        dtype: bfloat16 to run a float32 model under autocast, None for the model's own.

    Attributes:
        dense: token loss of every segment under the dense model: float64 ``[segments]``, nats.

    Raises:
        ValueError: no window, or windows of fewer than two tokens.
        FloatingPointError: the dense model's loss is not finite.
    """

    window = "window"

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        matrices: Sequence[Matrix],
        codes: Mapping[str, Tensor],
        windows: Samples,
        *,
        segment: int = 16,
        batch: int = 16,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._codes = {
            layer: {m.name: codes[m.name] for m in linears} for layer, linears in of_layers(matrices).items()
        }
        self._per_window = max(1, round((windows.tokens.shape[1] - 1) / segment))
        self._buffer: Tensor | None = None
        super().__init__(model, structure, windows, _growing(len(windows), batch), dtype)

    def __getstate__(self) -> dict[str, Any]:
        # Another process gets the tensors as shared memory; a buffer is its own.
        return self.__dict__ | {"_buffer": None}

    def evaluate(
        self, levels: Sequence[int], stop: Callable[[tuple[float, ...]], bool] = lambda _losses: False
    ) -> Fitness:
        """Run a candidate over the windows.

        Args:
            levels: 0 to 256, one per decoder layer.
            stop: called with all losses so far after every piece but the last; True ends the evaluation, as does a
                loss that is not finite.

        Raises:
            ValueError: another number of layers, or a level out of range.
        """
        num_layers = self.structure.num_layers
        if len(levels) != num_layers or not all(0 <= level <= 256 for level in levels):
            raise InputError(f"levels {tuple(levels)}: expected {num_layers} from 0 to 256")
        losses: tuple[float, ...] = ()
        seconds = {"masks": 0.0, "forward": 0.0}
        with self._computing():
            for index, dense in enumerate(self._dense_pieces):
                losses += tuple((self._losses(index, levels, seconds) - dense).tolist())
                if not math.isfinite(sum(losses)) or (len(losses) < len(self) and stop(losses)):
                    break
        return Fitness(losses, len(losses) < len(self), seconds)

    def _losses(self, index: int, levels: Sequence[int], seconds: dict[str, float]) -> Tensor:
        """Return the token losses of one piece's segments: float64 ``[segments]``, nats; add to the seconds."""
        begun = time.perf_counter()
        masking = 0.0
        hidden = self._runner.inputs[index]
        for layer, level in enumerate(levels):
            start = time.perf_counter()
            with self._masked(layer, level):
                masking += time.perf_counter() - start
                hidden = self._runner.run(layer, hidden)
        losses = self._segment_losses(hidden, self._pieces[index])
        seconds["masks"] += masking
        seconds["forward"] += time.perf_counter() - begun - masking
        return losses

    def _masked(self, layer: int, level: int) -> AbstractContextManager[object]:
        if not level or layer not in self._codes:
            return nullcontext()
        if self._buffer is None:
            like = get_linear(self.model, next(iter(self._codes[layer]))).weight
            largest = max(sum(codes.numel() for codes in linears.values()) for linears in self._codes.values())
            self._buffer = torch.empty(largest, dtype=like.dtype, device=like.device)
        return masked_weights(self.model, self._codes[layer], level, self._buffer)

    def _cut(self, nll: Tensor) -> Tensor:
        return torch.stack([part.mean(1) for part in nll.tensor_split(self._per_window, dim=1)], dim=1).flatten()


def _growing(count: int, batch: int) -> list[int]:
    """Return sizes of pieces: 1, 1, 2, 4, ... up to ``batch``, and the remainder."""
    sizes: list[int] = []
    while (done := sum(sizes)) < count:
        sizes.append(min(max(1, done), batch, count - done))
    return sizes
