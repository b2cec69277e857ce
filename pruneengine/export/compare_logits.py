"""The one comparison of every export: logits of the checkpoint against logits of what was written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruneengine.checkpoint.reload_proof import TOLERANCE, ReloadError
from pruneengine.model.masking import in_float32


@torch.inference_mode()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """float32 ``(rows, length, vocabulary)``, computed in float32 whatever the type of the weights.

    In half precision, sums that take another order for another width round otherwise, and a deep model makes that
    a difference as large as one of the weights would be.
    """
    with in_float32(model):
        return model(input_ids=tokens, use_cache=False).logits.float()


def agree(what: str, actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32, slack: float = 1.0) -> str:
    """A sentence on how close two models are.

    Args:
        what: the one that was written, for the sentence.
        actual: its logits.
        expected: the checkpoint's, of the same shape.
        dtype: of the less exact arithmetic, which sets the tolerance (:data:`TOLERANCE`).
        slack: the tolerance is multiplied by it.

    Raises:
        ReloadError: they differ by more than the tolerance.
    """
    difference = (actual - expected).abs().max().item()
    tolerance = slack * TOLERANCE[dtype] * max(1.0, expected.abs().max().item())
    # Written so that NaN fails.
    if not difference <= tolerance:
        raise ReloadError(f"{what}: logits differ by up to {difference:.3g}, more than {tolerance:.3g}")
    same = (actual.argmax(-1) == expected.argmax(-1)).float().mean().item()
    return (
        f"{what}: logits within {difference:.1e} of the checkpoint's (allowed {tolerance:.1e}), the most likely token "
        f"equal at {same:.1%} of {expected.shape[0] * expected.shape[1]} positions"
    )
