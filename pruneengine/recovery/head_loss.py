"""Token loss of a head with a gradient at the hidden states; the full logits never exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.model.loss import token_nll_backward


class _HeadLoss(torch.autograd.Function):
    """Loss whose closed-form gradient is computed in the forward pass, from the same logits, and kept for backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Module, targets: Tensor, options: dict[str, Any]) -> Tensor:
        nll, gradient = token_nll_backward(hidden, head, targets, **options)
        ctx.save_for_backward(gradient)
        return nll.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None


def head_loss(hidden: Tensor, head: nn.Module, targets: Tensor, **options: Any) -> Tensor:
    """Return the sum of negative log-likelihoods in nats, float32 scalar, differentiable in ``hidden`` alone.

    Args:
        hidden: input of the head ``[M, H]``.
        head: frozen linear layer, as in :func:`pruneengine.model.loss.token_nll`.
        targets: int64 ``[M]``, -100 ignored.
        options: ``chunk``, ``softcap`` and ``scale`` of :func:`pruneengine.model.loss.token_nll`.
    """
    return _HeadLoss.apply(hidden, head, targets, options)
