"""Buffers that calibration hooks write to.

Quantities per sample have one row per sample, quantities of whole sets one row per named set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruneengine.model.layer_runner import by_sample


class Recorder:
    """Per-sample rows and whole-set vectors of one calibration pass.

    Attributes:
        num_samples: N, of the calibration set.
        rows: the samples in flight, which the next rows belong to.
        sets: the samples of each set that has whole-set quantities; the first holds all samples.
        of_subsets: float32 ``[S, C]`` by quantity and name, one row per set but the first.
    """

    def __init__(self, num_samples: int, subsets: Sequence[Sequence[int]] = ()) -> None:
        self.num_samples = num_samples
        self.sets = (tuple(range(num_samples)), *map(tuple, subsets))
        self.rows = slice(0, num_samples)
        self.of_subsets: dict[str, dict[str, Tensor]] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def by_sample(self, x: Tensor) -> Tensor:
        """Return activations of the samples in flight as ``[b, T, C]``, also where a model runs ``[b * T, C]``."""
        return by_sample(x, self.rows.stop - self.rows.start)

    def write(self, quantity: str, name: str, values: Tensor) -> None:
        """Store ``[b, C]`` values of the samples in flight, on the device they come from."""
        named = self._tensors.setdefault(quantity, {})
        if name not in named:
            named[name] = torch.full((self.num_samples, values.shape[1]), float("nan"), device=values.device)
        named[name][self.rows] = values

    def write_total(self, quantity: str, name: str, values: Tensor) -> None:
        """Store ``[len(sets), C]`` values, one row per set."""
        self._tensors.setdefault(quantity, {})[name] = values[0]
        if len(self.sets) > 1:
            self.of_subsets.setdefault(quantity, {})[name] = values[1:].cpu()

    def finish(self) -> dict[str, Mapping[str, Tensor]]:
        """Return all quantities but :attr:`of_subsets`, on the CPU. Rows that were never written are NaN."""
        return {q: {name: t.cpu() for name, t in named.items()} for q, named in self._tensors.items()}
