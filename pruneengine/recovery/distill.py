"""Distillation loss: the divergence between teacher and student over the teacher's likeliest tokens.

For each position the vocabulary is divided into the teacher's ``k`` likeliest tokens K and one class for the rest.
With p and q the softmax of the teacher's and the student's logits over the temperature T, the loss is

    T^2 * [sum_{i in K} p_i log(p_i / q_i) + p_rest log(p_rest / q_rest)],

a coarse Kullback-Leibler divergence: never above the full one, equal to it for k = V. T^2 keeps the gradient's size
(Hinton et al., 2015). At the student's logits z its gradient is T * (q_i - p_i) in K and T * q_j (1 - p_rest / q_rest)
elsewhere. It is computed with the loss, so only one chunk of logits exists at a time, as in
:mod:`pruneengine.model.loss`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruneengine.model.loss import chunk_tokens, head_logits


class TeacherTargets(NamedTuple):
    """Teacher's probabilities of its likeliest tokens, and of the rest.

    Attributes:
        probability: of each likeliest token, float32 ``[M, k]``.
        tokens: ids of the likeliest tokens, int64 ``[M, k]``.
        rest: of all other tokens together, float32 ``[M, 1]``.
    """

    probability: Tensor
    tokens: Tensor
    rest: Tensor


@torch.no_grad()
def teacher_targets(
    hidden: Tensor,
    head: nn.Linear,
    topk: int,
    temperature: float,
    chunk: int | None = None,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
) -> TeacherTargets:
    """Return the targets of the student from the teacher's hidden states ``[M, H]``, a chunk of tokens at a time."""
    topk = min(topk, head.weight.shape[0])
    parts = []
    for part in hidden.split(chunk or chunk_tokens(head)):
        probability = head_logits(part, head, scale, softcap).div_(temperature).softmax(-1)
        likeliest, tokens = probability.topk(topk, dim=-1)
        parts.append((likeliest, tokens, probability.scatter_(1, tokens, 0).sum(1, keepdim=True)))
    return TeacherTargets(*(torch.cat(piece) for piece in zip(*parts, strict=True)))


class _DistillLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: nn.Linear, targets: TeacherTargets, temperature: float, options: dict[str, Any]
    ) -> Tensor:
        scale, softcap = options.get("scale", 1.0), options.get("softcap")
        chunk = options.get("chunk") or chunk_tokens(head)
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            teacher, tokens, teacher_rest = (piece[part] for piece in targets)
            logits = head_logits(hidden[part], head, scale, softcap)
            slope = None if softcap is None else 1 - (logits / softcap).square()
            error = logits.div_(temperature).softmax(-1)
            student = error.gather(1, tokens)
            error.scatter_(1, tokens, 0)
            tiny = torch.finfo(error.dtype).tiny
            student_rest = error.sum(1, keepdim=True).clamp_min_(tiny)
            total += _divergence(teacher, student.clamp_min(tiny)) + _divergence(teacher_rest, student_rest)
            error.mul_(1 - teacher_rest / student_rest).scatter_(1, tokens, student - teacher)
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
    hidden: Tensor, head: nn.Linear, targets: TeacherTargets, temperature: float, **options: Any
) -> Tensor:
    """Return the sum of the loss over positions in nats: float32 scalar, differentiable in ``hidden`` ``[M, H]`` alone.

    ``options`` are ``chunk``, ``softcap`` and ``scale`` of the student's head.
    """
    return _DistillLoss.apply(hidden, head, targets, temperature, options)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the sum of p log(p / q), where terms with p = 0 are 0."""
    return (torch.xlogy(p, p) - p * q.log()).double().sum()
