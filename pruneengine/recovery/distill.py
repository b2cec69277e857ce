"""Imitating the dense model: the divergence between teacher and student over the teacher's likeliest tokens.

For each position the vocabulary is told apart into the teacher's ``k`` likeliest tokens K and one class for the rest.
With p and q the softmax of the teacher's and the student's logits over the temperature T, the loss is

    T^2 * [sum_{i in K} p_i log(p_i / q_i) + p_rest log(p_rest / q_rest)],

a coarse Kullback-Leibler divergence: never above the full one, equal to it for k = V. T^2 keeps the gradient's size
(Hinton et al., 2015). At the student's logits z its gradient is T * (q_i - p_i) in K and T * q_j (1 - p_rest / q_rest)
elsewhere, so that one chunk of logits is all that exists, as in :mod:`pruneengine.model.loss`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruneengine.model.loss import chunk_tokens, head_logits


class TeacherTargets(NamedTuple):
    """Chances of the likeliest tokens, float32 ``[M, k]``, their ids, int64 ``[M, k]``, and of the rest ``[M, 1]``."""

    chance: Tensor
    tokens: Tensor
    rest: Tensor


@torch.no_grad()
def teacher_targets(
    hidden: Tensor,
    head: nn.Module,
    topk: int,
    temperature: float,
    chunk: int | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
) -> TeacherTargets:
    """What to imitate, from the teacher's hidden states ``[M, H]``, a chunk of tokens at a time."""
    topk = min(topk, head.weight.shape[0])
    parts = []
    for part in hidden.split(chunk or chunk_tokens(head)):
        chance = head_logits(part, head, scale, softcap).div_(temperature).softmax(-1)
        likely, tokens = chance.topk(topk, dim=-1)
        parts.append((likely, tokens, chance.scatter_(1, tokens, 0).sum(1, keepdim=True)))
    return TeacherTargets(*(torch.cat(piece) for piece in zip(*parts, strict=True)))


class _DistillLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: nn.Module, targets: TeacherTargets, temperature: float, options: dict[str, Any]
    ) -> Tensor:
        scale, softcap = options.get("scale", 1.0), options.get("softcap")
        chunk = options.get("chunk") or chunk_tokens(head)
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            wanted, tokens, rest = (piece[part] for piece in targets)
            logits = head_logits(hidden[part], head, scale, softcap)
            slope = None if softcap is None else 1 - (logits / softcap).square()
            error = logits.div_(temperature).softmax(-1)
            found = error.gather(1, tokens)
            error.scatter_(1, tokens, 0)
            tiny = torch.finfo(error.dtype).tiny
            left = error.sum(1, keepdim=True).clamp_min_(tiny)
            total += _divergence(wanted, found.clamp_min(tiny)) + _divergence(rest, left)
            error.mul_(1 - rest / left).scatter_(1, tokens, found - wanted)
            if slope is not None:
                error.mul_(slope)
            gradient[part] = (error.to(head.weight.dtype) @ head.weight).mul_(temperature * scale)
        ctx.save_for_backward(gradient)
        return (total * temperature**2).float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None


def distill_loss(
    hidden: Tensor, head: nn.Module, targets: TeacherTargets, temperature: float, **options: Any
) -> Tensor:
    """Sum over positions of the loss above in nats: float32 scalar, differentiable in ``hidden`` ``[M, H]`` alone.

    ``options`` are ``chunk``, ``softcap`` and ``scale`` of the student's head.
    """
    return _DistillLoss.apply(hidden, head, targets, temperature, options)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Sum of p log(p / q), 0 where p is."""
    return (torch.xlogy(wanted, wanted) - wanted * found.log()).double().sum()
