"""The tight inner evaluation of a search over sparsities: what a level a layer costs in loss, piece by piece.

The model's weights are never written: while a layer runs, its linears are lent masked copies, and all layers share the
buffer that these stand in. Losses are averaged over short segments, so that a paired test has units after a few hundred
tokens, where most candidates can be told from the best one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.data.samples import Samples
from pruneengine.model import Structure, get_linear
from pruneengine.model.decoder import autocast, causal_parts, inference
from pruneengine.model.layer_runner import LayerRunner
from pruneengine.model.loss import token_nll
from pruneengine.model.masking import masked_weights
from pruneengine.sparse.matrices import Matrix, of_layers


@dataclass(frozen=True)
class Fitness:
    """What a candidate costs.

    Attributes:
        losses: mean token loss above the dense model's, nats, of every segment that was run.
        stopped: whether it was stopped before the last one.
        seconds: spent on "masks" and on the "forward" passes.
    """

    losses: tuple[float, ...]
    stopped: bool
    seconds: dict[str, float]

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)


class SparseObjective:
    """Paired loss of sparsity levels on fixed windows in a fixed order.

    Args:
        model: the dense model; it is left as it was after every evaluation.
        structure: of the model.
        matrices: its linears that are masked.
        codes: of :func:`pruneengine.search.dsa.codes.quantile_masks`.
        windows: token windows ``[N, L]``, L at least 2. The first piece is one window; every further piece is as long
            as all before it together, up to ``batch`` windows.
        segment: tokens a segment, about: windows are cut into equal parts.
        batch: windows of the longest pieces.
        dtype: bfloat16 to run a float32 model under autocast, None for the model's own.

    Attributes:
        dense: token loss of every segment under the dense model: float64 ``[segments]``.

    Raises:
        ValueError: no window, or windows of fewer than two tokens.
        FloatingPointError: the dense model's loss is not finite.
    """

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
        if not len(windows) or windows.tokens.shape[1] < 2:
            raise ValueError(f"windows {tuple(windows.tokens.shape)}: expected at least one of two tokens")
        self.model, self.windows, self.dtype = model, windows, dtype
        self._norm = model.get_submodule(structure.family.final_norm)
        self._codes = {layer: {m.name: codes[m.name] for m in of} for layer, of in of_layers(matrices).items()}
        self.num_layers = structure.num_layers
        self._weight = next(model.parameters())
        autocast(self._weight, dtype)
        self._parts = max(1, round((windows.tokens.shape[1] - 1) / segment))
        self._pieces = [piece.to(self._weight.device) for piece in windows.tokens.split(_growing(len(windows), batch))]
        self._buffer: Tensor | None = None
        with self._quiet():
            self._walk = LayerRunner(model, structure, self._pieces)
            levels = (0,) * self.num_layers
            self.dense = torch.cat([self._segments(i, levels, {}) for i in range(len(self._pieces))])
        if not bool(self.dense.isfinite().all()):
            bad = int((~self.dense.isfinite()).nonzero()[0]) // self._parts
            raise FloatingPointError(f"the dense model's loss on window {bad} of {len(windows)} is not finite")

    def __len__(self) -> int:
        """Segments of all windows."""
        return len(self.dense)

    def __getstate__(self) -> dict[str, Any]:
        # Another process gets the tensors as shared memory; a buffer is its own.
        return self.__dict__ | {"_buffer": None}

    def evaluate(
        self, levels: Sequence[int], stop: Callable[[tuple[float, ...]], bool] = lambda _losses: False
    ) -> Fitness:
        """Run a candidate over the windows.

        Args:
            levels: 0 to 256, one a decoder layer.
            stop: called with all losses so far after every piece but the last; True ends the evaluation, as does a
                loss that is not finite.

        Raises:
            ValueError: another number of layers, or a level out of range.
        """
        if len(levels) != self.num_layers or not all(0 <= level <= 256 for level in levels):
            raise ValueError(f"levels {tuple(levels)}: expected {self.num_layers} from 0 to 256")
        losses: tuple[float, ...] = ()
        seconds = {"masks": 0.0, "forward": 0.0}
        with self._quiet():
            for index in range(len(self._pieces)):
                found = self._segments(index, levels, seconds)
                losses += tuple((found - self.dense[len(losses) : len(losses) + len(found)]).tolist())
                if not math.isfinite(sum(losses)) or (len(losses) < len(self) and stop(losses)):
                    break
        return Fitness(losses, len(losses) < len(self), seconds)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        with inference(self.model), autocast(self._weight, self.dtype):
            yield

    def _segments(self, index: int, levels: Sequence[int], seconds: dict[str, float]) -> Tensor:
        """Token losses of one piece, averaged over segments: float64 ``[windows * segments a window]``."""
        begun = time.perf_counter()
        masking = 0.0
        hidden = self._walk.inputs[index]
        for layer, level in enumerate(levels):
            start = time.perf_counter()
            with self._masked(layer, level):
                masking += time.perf_counter() - start
                hidden = self._walk.run(layer, hidden)
        tokens = self._pieces[index]
        _, head, options = causal_parts(self.model)
        nll = token_nll(self._norm(hidden)[:, :-1], head, tokens[:, 1:], **options).double()
        parts = torch.stack([part.mean(1) for part in nll.tensor_split(self._parts, dim=1)], dim=1).flatten().cpu()
        if seconds:
            seconds["masks"] += masking
            seconds["forward"] += time.perf_counter() - begun - masking
        return parts

    def _masked(self, layer: int, level: int):
        if not level or layer not in self._codes:
            return nullcontext()
        if self._buffer is None:
            like = get_linear(self.model, next(iter(self._codes[layer]))).weight
            largest = max(sum(codes.numel() for codes in of.values()) for of in self._codes.values())
            self._buffer = torch.empty(largest, dtype=like.dtype, device=like.device)
        return masked_weights(self.model, self._codes[layer], level, self._buffer)


def _growing(count: int, batch: int) -> list[int]:
    """Sizes of pieces: 1, 1, 2, 4, ... up to ``batch``, and what is left."""
    sizes: list[int] = []
    while (done := sum(sizes)) < count:
        sizes.append(min(max(1, done), batch, count - done))
    return sizes
