"""Comparison that every export uses: logits of the checkpoint against logits of the written model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruneengine.checkpoint.reload_proof import LOGIT_TOLERANCE, ReloadError
from pruneengine.model.masking import in_float32


@torch.inference_mode()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits, float32 ``(rows, length, vocabulary)``, computed in float32 whatever the type of the weights.

    In half precision, another width changes the order of sums and so their rounding. In a deep model that difference
    becomes as large as one caused by wrong weights.
    """
    with in_float32(model):
        return model(input_ids=tokens, use_cache=False).logits.float()


def agree(what: str, actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32, slack: float = 1.0) -> str:
    """Return a sentence on how close the logits of two models are.

    Args:
        what: name of the written model, for the sentence.
        actual: logits of the written model.
        expected: logits of the checkpoint, of the same shape.
        dtype: dtype of the less exact arithmetic, which sets the tolerance (:data:`LOGIT_TOLERANCE`).
        slack: factor on the tolerance.

    Raises:
        ReloadError: the logits differ by more than the tolerance.
    """
    difference = (actual - expected).abs().max().item()
    tolerance = slack * LOGIT_TOLERANCE[dtype] * max(1.0, expected.abs().max().item())
    # Written so that NaN fails.
    if not difference <= tolerance:
        raise ReloadError(f"{what}: logits differ by up to {difference:.3g}, more than {tolerance:.3g}")
    same = (actual.argmax(-1) == expected.argmax(-1)).float().mean().item()
    return (
        f"{what}: logits within {difference:.1e} of the checkpoint's (allowed {tolerance:.1e}), the most likely token "
        f"equal at {same:.1%} of {expected.shape[0] * expected.shape[1]} positions"
    )
