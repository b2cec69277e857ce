"""Comparison that every export uses: logits of the checkpoint against logits of the written model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.checkpoint.reload_proof import LOGIT_TOLERANCE, ReloadError


@torch.inference_mode()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits, float32 ``(rows, length, vocabulary)``, computed in float32 whatever the type of the weights.

    In half precision, another width changes the order of sums and so their rounding. In a deep model that difference
    becomes as large as one caused by wrong weights.
    """
    with _in_float32(model):
        return model(input_ids=tokens, use_cache=False).logits.float()


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Modules compute with float32 copies of their own weights, which live as long as the call of the module."""
    held: dict[nn.Module, dict[str, nn.Parameter]] = {}

    def widen(module: nn.Module, _arguments: Any) -> None:
        held[module] = _half(module)
        for name, parameter in held[module].items():
            setattr(module, name, nn.Parameter(parameter.float(), requires_grad=False))

    def restore(module: nn.Module, *_call: Any) -> None:
        for name, parameter in held.pop(module, {}).items():
            setattr(module, name, parameter)

    handles = []
    try:
        for module in filter(_half, model.modules()):
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(restore, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _half(module: nn.Module) -> dict[str, nn.Parameter]:
    own = module.named_parameters(recurse=False)
    return {name: parameter for name, parameter in own if parameter.dtype in (torch.float16, torch.bfloat16)}


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
