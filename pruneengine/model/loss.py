"""Token loss of a language-model head in chunks of tokens, so that the full logits never exist.

The forward and the closed-form gradient at the hidden states share one bound: the float32 logits of one chunk are
about :data:`LOGIT_BYTES`, whatever the vocabulary and the number of tokens.
"""

from __future__ import annotations

from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruneengine.common.errors import InputError, InputTypeError

LOGIT_BYTES = 64 * 2**20
IGNORED = -100


class LogitOptions(TypedDict):
    """Keyword arguments of :func:`token_nll` and :func:`token_nll_backward` that a model's config gives."""

    softcap: float | None
    scale: float


def logit_options(config: object) -> LogitOptions:
    """Return ``softcap`` and ``scale`` that a model's config asks for between its head and its logits.

    Reads ``final_logit_softcapping`` (Gemma), ``logit_scale`` (Cohere) and ``logits_scaling`` (Granite, a divisor).
    """
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return {"softcap": getattr(config, "final_logit_softcapping", None), "scale": scale / divisor}


@torch.no_grad()
def token_nll(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    chunk: int | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Return the negative log-likelihood of each target token in nats: float32 ``[..., T]``.

    Args:
        hidden: the head's input ``[..., T, H]``; cast to the dtype of the head's weight.
        head: a linear layer, ``weight`` ``[V, H]`` and ``bias`` ``[V]`` or None.
        targets: int64 ``[..., T]``, each in ``[0, V)``, or -100: ignored, its loss is 0.
        chunk: tokens whose logits exist at once; None keeps them at about 64 MB of float32.
        softcap: logits become ``softcap * tanh(logits / softcap)``, after the scale.
        scale: factor on the logits.

    Raises:
        TypeError: the head has no weight matrix.
        ValueError: shapes that do not fit, a chunk below 1, a softcap that is not positive.
    """
    chunk = _checked_chunk(hidden, head, targets, chunk, softcap)
    flat, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    nll = torch.zeros(flat_targets.shape, dtype=torch.float32, device=hidden.device)
    for start in range(0, len(flat_targets), chunk):
        part = slice(start, start + chunk)
        logits = head_logits(flat[part], head, scale, softcap)
        nll[part], _ = _nll_and_exponentials_(logits, flat_targets[part])
    return nll.view(targets.shape)


@torch.no_grad()
def token_nll_backward(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    weights: Tensor | float = 1.0,
    chunk: int | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return :func:`token_nll` and the gradient of ``sum(weights * nll)`` at ``hidden``, without an autograd graph.

    The gradient is ``weights * scale * cap' * (softmax(logits) - onehot(target)) @ W``, with
    ``cap' = 1 - (logits / softcap)^2``. Softmax is float32; the product with W runs in W's dtype.

    Args:
        hidden: the head's input ``[..., T, H]``.
        head: as in :func:`token_nll`.
        targets: int64 ``[..., T]``; -100 is ignored (loss 0, gradient 0).
        weights: factor of each token's loss, broadcastable to ``[..., T]``, e.g. ``1 / (T - 1)`` for a mean.
        chunk: as in :func:`token_nll`.
        softcap: as in :func:`token_nll`.
        scale: as in :func:`token_nll`.

    Returns:
        ``(nll, gradient)``: float32 ``[..., T]``, not weighted, and ``[..., T, H]`` in the dtype of ``hidden``.
    """
    chunk = _checked_chunk(hidden, head, targets, chunk, softcap)
    weight = _weight(head)
    flat, flat_targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    weights = torch.as_tensor(weights, dtype=precise, device=hidden.device).broadcast_to(targets.shape).reshape(-1)
    weights = weights * scale * (flat_targets != IGNORED)
    nll = torch.zeros(flat_targets.shape, dtype=torch.float32, device=hidden.device)
    gradient = torch.empty_like(flat, memory_format=torch.contiguous_format)
    for start in range(0, len(flat_targets), chunk):
        part = slice(start, start + chunk)
        logits = head_logits(flat[part], head, scale, softcap)
        slope = None if softcap is None else logits.div(softcap).square_().neg_().add_(1)
        nll[part], total = _nll_and_exponentials_(logits, flat_targets[part])
        error = logits.div_(total)
        error.scatter_add_(1, flat_targets[part].clamp_min(0)[:, None], -torch.ones_like(total))
        if slope is not None:
            error.mul_(slope)
        # Weighted after the product: 1 / T on a softmax entry would underflow in float16.
        gradient[part] = (error.to(weight.dtype) @ weight).to(precise) * weights[part, None]
    return nll.view(targets.shape), gradient.view(hidden.shape)


def _checked_chunk(hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int | None, softcap: float | None) -> int:
    """Return the number of tokens per chunk, or raise what :func:`token_nll` says."""
    weight = _weight(head)
    if hidden.shape[:-1] != targets.shape or hidden.shape[-1] != weight.shape[1]:
        raise InputError(
            f"hidden {tuple(hidden.shape)} with targets {tuple(targets.shape)} and head {tuple(weight.shape)}: "
            "expected [..., T, H], [..., T] and [V, H]"
        )
    if softcap is not None and not softcap > 0:
        raise InputError(f"softcap={softcap}: expected a positive number or None")
    if chunk is None:
        return chunk_tokens(head)
    if chunk < 1:
        raise InputError(f"chunk={chunk}: expected at least 1 token")
    return chunk


def chunk_tokens(head: nn.Module) -> int:
    """Return the number of tokens whose float32 logits take about :data:`LOGIT_BYTES`."""
    return max(1, LOGIT_BYTES // (4 * _weight(head).shape[0]))


def head_logits(hidden: Tensor, head: nn.Module, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """Return logits ``[M, V]`` of hidden states ``[M, H]`` in at least float32, safe to overwrite."""
    weight = _weight(head)
    logits = F.linear(hidden.to(weight.dtype), weight, getattr(head, "bias", None))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if scale != 1.0:
        logits.mul_(scale)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _weight(head: nn.Module) -> Tensor:
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise InputTypeError(f"head: {type(head).__name__}, expected a linear layer with a weight [V, H]")
    return weight


def _nll_and_exponentials_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss ``[M]``, and the sum ``[M, 1]`` of the exponentials that overwrite ``logits``.

    The exponentials are scaled by their peak.
    """
    target = logits.gather(1, targets.clamp_min(0)[:, None])
    peak = logits.amax(1, keepdim=True)
    total = logits.sub_(peak).exp_().sum(1, keepdim=True)
    nll = (total.log() + peak - target).squeeze(1).masked_fill_(targets == IGNORED, 0)
    return nll.float(), total
