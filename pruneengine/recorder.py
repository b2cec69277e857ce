"""Where hooks put what they see: one row a sample."""

from __future__ import annotations

import torch
from torch import Tensor


class Recorder:
    """Collects per-sample rows and whole-set vectors; :attr:`rows` names the samples now in flight."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.rows = slice(0, num_samples)
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def write(self, quantity: str, name: str, values: Tensor) -> None:
        """Store ``[b, C]`` values of the samples in flight, on the device they come from."""
        named = self._tensors.setdefault(quantity, {})
        if name not in named:
            named[name] = torch.full((self.num_samples, values.shape[1]), float("nan"), device=values.device)
        named[name][self.rows] = values

    def write_total(self, quantity: str, name: str, values: Tensor) -> None:
        """Store a ``[C]`` vector that belongs to the whole set."""
        self._tensors.setdefault(quantity, {})[name] = values

    def finish(self) -> dict[str, dict[str, Tensor]]:
        """Everything, on the CPU. Rows that were never written are NaN."""
        return {q: {name: t.cpu() for name, t in named.items()} for q, named in self._tensors.items()}
