"""Size and perplexity of a model, measured alike before and after a change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pruneengine.data.windows import Samples
from pruneengine.evaluation.perplexity import PerplexityResult, model_size, perplexity
from pruneengine.evaluation.speed import SpeedResult


@dataclass(frozen=True)
class Measurer:
    """A measurer of models on one text, in one dtype.

    Attributes:
        text: windows of the perplexity; None for none.
        dtype: dtype that models compute in; None for the dtype of their weights.
    """

    text: Samples | None
    dtype: torch.dtype | None = None

    def measure(self, model: nn.Module) -> Measures:
        """Return size, and perplexity where there is a text."""
        result = None if self.text is None else perplexity(model, self.text, dtype=self.dtype)
        return Measures(*model_size(model), perplexity=result)

    def measure_pruned(self, model: nn.Module) -> tuple[Measures, tuple[str, ...]]:
        """Return the measures of a changed model, and warnings.

        A loss that is not finite is a warning: hours of work are saved all the same.
        """
        try:
            return self.measure(model), ()
        except FloatingPointError as error:
            return Measures(*model_size(model)), (f"the changed model has no perplexity: {error}",)


@dataclass(frozen=True)
class Measures:
    """Size, perplexity and speed of one model; None where it was not measured."""

    params: int
    weight_bytes: int
    perplexity: PerplexityResult | None = None
    speed: SpeedResult | None = None
