"""Loss of a masked model above the dense model's, on fixed text, piece by piece.

No weight is written. A piece is a few windows that pass through the layers together; a search may stop a candidate
between pieces.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError, NotFiniteError
from pruneengine.common.progress import track
from pruneengine.data.samples import Samples
from pruneengine.model import Structure
from pruneengine.model.decoder import autocast, causal_parts, inference
from pruneengine.model.layer_runner import LayerRunner
from pruneengine.model.loss import token_nll


class MaskedLoss(ABC):
    """Paired losses of masked models on fixed windows in a fixed order; a subclass masks layers and cuts the text.

    A segment is the text whose token losses are averaged: a window, or an equal part of one.

    Args:
        model: the dense model; it is left as it was after every evaluation.
        structure: of the model.
        samples: token windows ``[N, L]``, L at least 2.
        sizes: windows per piece, or the number of windows of each piece.
        dtype: bfloat16 to run a float32 model under autocast, None for the model's own.

    Attributes:
        dense: token loss of every segment under the dense model: float64 ``[segments]``, nats.

    Raises:
        ValueError: no window, or windows of fewer than two tokens.
        FloatingPointError: the dense model's loss is not finite.
    """

    # The search's word for a window, for messages.
    window: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        samples: Samples,
        sizes: int | list[int],
        dtype: torch.dtype | None,
    ) -> None:
        if not len(samples) or samples.tokens.shape[1] < 2:
            raise InputError(f"{self.window}s {tuple(samples.tokens.shape)}: expected at least one of two tokens")
        self.model, self.structure, self.samples, self.dtype = model, structure, samples, dtype
        self.device = next(model.parameters()).device
        self._norm = model.get_submodule(structure.family.final_norm)
        self._pieces = [piece.to(self.device) for piece in samples.tokens.split(sizes)]
        with self._computing():
            self._runner = LayerRunner(model, structure, self._pieces)
            indices = track(range(len(self._pieces)), "dense loss")
            self._dense_pieces = [
                self._segment_losses(self._run_dense(index), self._pieces[index]) for index in indices
            ]
        self.dense = torch.cat(self._dense_pieces)
        self._check_dense()

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.dense)

    @abstractmethod
    def _cut(self, nll: Tensor) -> Tensor:
        """Average token losses ``[windows, L - 1]`` over segments: ``[segments]`` in the order of the text."""

    def _enter(self, layer: int, hidden: Tensor) -> None:  # noqa: B027
        """Look at what enters a layer of the dense model, once per piece and in their order."""

    def _segment_losses(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the losses of a piece's segments, from what leaves the last layer: float64 ``[segments]``, nats."""
        _, head, options = causal_parts(self.model)
        return self._cut(token_nll(self._norm(hidden)[:, :-1], head, tokens[:, 1:], **options).double()).cpu()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with inference(self.model), autocast(next(self.model.parameters()), self.dtype):
            yield

    def _run_dense(self, index: int) -> Tensor:
        hidden = self._runner.inputs[index]
        for layer in range(self.structure.num_layers):
            self._enter(layer, hidden)
            hidden = self._runner.run(layer, hidden)
        return hidden

    def _check_dense(self) -> None:
        finite = self.dense.isfinite()
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            place = f"{self.window} {bad * len(self.samples) // len(self.dense)} of {len(self.samples)}"
            raise NotFiniteError(f"the dense model's loss on {place} is {self.dense[bad]:.6g}")
