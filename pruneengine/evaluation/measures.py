"""What a job measures its models by: the same text, in the same arithmetic, before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pruneengine.data.windows import Samples
from pruneengine.evaluation.perplexity import PerplexityResult, model_size, perplexity
from pruneengine.evaluation.speed import SpeedResult


@dataclass(frozen=True)
class Measurer:
    """Measures models that were loaded alike.

    Attributes:
        text: windows of the perplexity; None for none.
        dtype: what they compute in; None for their weights' dtype.
    """

    text: Samples | None
    dtype: torch.dtype | None = None

    def measure(self, model: nn.Module) -> Measures:
        """Size, and perplexity where there is a text."""
        found = None if self.text is None else perplexity(model, self.text, dtype=self.dtype)
        return Measures(*model_size(model), perplexity=found)

    def measure_pruned(self, model: nn.Module) -> tuple[Measures, tuple[str, ...]]:
        """The same of a model that hours went into: a loss that is not finite is a warning, so that it is saved all the
        same."""
        try:
            return self.measure(model), ()
        except FloatingPointError as error:
            return Measures(*model_size(model)), (f"the changed model has no perplexity: {error}",)


@dataclass(frozen=True)
class Measures:
    """One side of the before-and-after table; None where it was not measured."""

    params: int
    weight_bytes: int
    perplexity: PerplexityResult | None = None
    speed: SpeedResult | None = None
