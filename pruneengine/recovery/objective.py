"""Training objective: the token loss of the student and, with a teacher, the distillation loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.model.decoder import autocast, causal_parts, hidden_states
from pruneengine.model.loss import IGNORED, token_nll
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.distill import distill_loss, teacher_targets
from pruneengine.recovery.head_loss import head_loss


class Objective:
    """Losses of a model whose adapters, if any, are attached already.

    Only the hidden states of predicted tokens reach the head, a chunk at a time.

    Args:
        model: the causal language model itself, not a wrapper.
        config: its options of the distillation are read.
        teacher: a causal language model in evaluation mode with the same vocabulary, or None.
        dtype: bfloat16 or float16 to run a float32 model under autocast; None or the model's own dtype for no cast.

    Raises:
        ValueError: the teacher's vocabulary has another size, or the model cannot be computed in ``dtype``.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RecoverConfig,
        teacher: nn.Module | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.teacher, self.config = model, teacher, config
        _, self.head, self.options = causal_parts(model)
        vocabulary = None if teacher is None else causal_parts(teacher)[1].weight.shape[0]
        if vocabulary not in (None, self.head.weight.shape[0]):
            raise InputError(
                f"the teacher's vocabulary has {vocabulary} tokens, the model's "
                f"{self.head.weight.shape[0]}: expected the model that was pruned, or one with its tokenizer"
            )
        weight = self.head.weight
        self.device = weight.device
        self.dtype = dtype
        autocast(weight, dtype)

    def __call__(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the losses of all predicted tokens, with a graph: float32 scalar.

        Args:
            input_ids: int64 ``[B, L]`` on the model's device.
            labels: int64 ``[B, L]``, -100 where nothing is predicted.
        """
        targets, chosen = _targets(labels)
        with autocast(self.head.weight, self.dtype):
            hidden = hidden_states(self.model, input_ids)[:, :-1][chosen]
            share = self.config.distill_weight if self.teacher is not None else 0.0
            loss = hidden.new_zeros((), dtype=torch.float32)
            if share < 1:
                loss = (1 - share) * head_loss(hidden, self.head, targets, **self.options)
            if share > 0:
                assert self.teacher is not None, "the share is 0 without a teacher"
                _, head, options = causal_parts(self.teacher)
                with torch.no_grad():
                    dense = hidden_states(self.teacher, input_ids)[:, :-1][chosen]
                temperature = self.config.distill_temperature
                imitated = teacher_targets(dense, head, self.config.distill_topk, temperature, **options)
                loss = loss + share * distill_loss(hidden, self.head, imitated, temperature, **self.options)
        return loss

    @torch.no_grad()
    def nll(self, input_ids: Tensor, labels: Tensor) -> tuple[float, int]:
        """Return the sum of the token losses in nats and the number of predicted tokens."""
        targets, chosen = _targets(labels)
        with autocast(self.head.weight, self.dtype):
            hidden = hidden_states(self.model, input_ids)[:, :-1][chosen]
            losses = token_nll(hidden, self.head, targets, **self.options)
        return float(losses.double().sum()), len(targets)


def _targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return targets ``[M]`` and the mask ``[B, L - 1]`` of the positions that predict them."""
    shifted = labels[:, 1:]
    chosen = shifted != IGNORED
    return shifted[chosen], chosen
