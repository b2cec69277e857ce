"""Objective of an AdaPruner search: loss of masked plans above the dense model's, block by block.

The model is never changed, copied or sliced: removed units are gated off where they enter o_proj and down_proj. The
inputs of the first layers are computed once, on the dense model, and a candidate starts at the first layer it prunes.
Several candidates can share a forward pass; that pays where one candidate's block leaves the device idle.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.data.samples import Samples
from pruneengine.model import Structure, find_groups
from pruneengine.model.masking import gate, kept_mask
from pruneengine.search.masked_loss import MaskedLoss
from pruneengine.structured.plan import Plan

# Bytes for inputs of the first layers, which are kept for all blocks and for as many layers as fit.
ENTRY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class MaskedPlan:
    """A candidate as the objective sees it.

    Attributes:
        plan: the kept units; layers are not dropped.
        means: values of removed channels, ``[channels]`` per group name; zero for a group without.
    """

    plan: Plan
    means: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Hash that is equal for candidates that compute the same."""
        digest = hashlib.sha256(json.dumps(self.plan.keep, sort_keys=True).encode())
        for name, means in sorted(self.means.items()):
            digest.update(name.encode() + means.numpy().tobytes())
        return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Evaluation:
    """Loss of a candidate.

    Attributes:
        losses: mean token loss of every block that was run, minus the dense model's: float64 ``[K]``, nats.
        stopped: whether the candidate was stopped before the last block.
        seconds: time of the forward passes, shared equally by candidates that ran together.
    """

    losses: Tensor
    stopped: bool
    seconds: float

    @property
    def mean(self) -> float:
        """Mean of the losses, nats."""
        return float(self.losses.mean())


class Objective(MaskedLoss):
    """Paired loss of masked candidates on fixed token blocks in a fixed order.

    Args:
        model: the dense model; it is left as it was after every evaluation.
        blocks: token windows ``[N, L]``, L at least 2, evaluated in this order.
        structure: structure of the model, when it is at hand.
        batch: blocks per forward pass.
        dtype: bfloat16 to run a float32 model under autocast, None for the model's own.

    Raises:
        ValueError: no block, or blocks of fewer than two tokens.
        FloatingPointError: the dense model's loss is not finite.
    """

    window = "block"

    def __init__(
        self,
        model: nn.Module,
        blocks: Samples,
        *,
        structure: Structure | None = None,
        batch: int = 2,
        dtype: torch.dtype | None = None,
    ) -> None:
        structure = structure or find_groups(model)
        self._entries: list[list[Tensor]] = [[] for _ in range(structure.num_layers)]
        super().__init__(model, structure, blocks, batch, dtype)

    def evaluate(
        self,
        candidates: Sequence[MaskedPlan],
        stop: Callable[[int, int, float], bool] = lambda _c, _block, _loss: False,
    ) -> list[Evaluation]:
        """Run candidates over the blocks.

        Args:
            candidates: at least one; all are run in the same forward passes.
            stop: called with a candidate's position, a block's index and its loss above the dense model's, block by
                block; the candidate leaves the batch once it answers True.

        Raises:
            ValueError: a plan that drops layers, or belongs to another model.
        """
        for candidate in candidates:
            self._check(candidate.plan)
        running = list(range(len(candidates)))
        losses: list[list[float]] = [[] for _ in candidates]
        seconds = [0.0] * len(candidates)
        with self._computing():
            for index in range(len(self._pieces)):
                if not running:
                    break
                start = time.perf_counter()
                rows = self._losses(index, [candidates[c] for c in running])
                spent = (time.perf_counter() - start) / len(running)
                for c, row in zip(list(running), rows, strict=True):
                    seconds[c] += spent
                    over = False
                    for loss in row.tolist():
                        losses[c].append(loss)
                        over = stop(c, len(losses[c]) - 1, loss) or over
                    if over:
                        running.remove(c)
        return [
            Evaluation(torch.tensor(rows, dtype=torch.float64), len(rows) < len(self), spent)
            for rows, spent in zip(losses, seconds, strict=True)
        ]

    def _check(self, plan: Plan) -> None:
        plan.check(self.structure)
        if len(plan.kept_layers) < self.structure.num_layers:
            raise InputError("the plan drops whole layers; a search's objective masks heads and channels only")
        if plan.lost_experts:
            raise InputError("the plan drops whole experts; a search's objective masks heads and channels only")

    def _losses(self, index: int, candidates: Sequence[MaskedPlan]) -> Tensor:
        """Return the losses above dense of one piece's blocks: float64 ``[candidates, blocks]``, nats."""
        first = min(_first_pruned(self.structure, candidate.plan) for candidate in candidates)
        first = max(layer for layer in range(first + 1) if self._entries[layer])
        tokens, count = self._pieces[index], len(candidates)
        hidden = self._entries[first][index].repeat(count, 1, 1)
        gates, means = self._gates(candidates, len(tokens))
        with gate(self.model, self.structure, gates, means=means):
            for layer in range(first, self.structure.num_layers):
                hidden = self._runner.run(layer, hidden, copies=count)
        losses = self._segment_losses(hidden, tokens.repeat(count, 1)).view(count, len(tokens))
        return losses - self._dense_pieces[index]

    def _gates(self, candidates: Sequence[MaskedPlan], blocks: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return gates ``[candidates * blocks, units]`` of groups that some candidate prunes, and means likewise."""
        gates: dict[str, Tensor] = {}
        means: dict[str, Tensor] = {}
        for name, group in self.structure.by_name.items():
            if all(len(c.plan.keep[name]) == group.units for c in candidates):
                continue
            rows = torch.stack([kept_mask(group.units, c.plan.keep[name]) for c in candidates])
            gates[name] = rows.repeat_interleave(blocks, 0).to(self.device)
            if any(name in c.means for c in candidates):
                channels = group.units * group.members[-1].width
                rows = torch.stack([c.means.get(name, torch.zeros(channels)) for c in candidates])
                means[name] = rows.repeat_interleave(blocks, 0).to(self.device)
        return gates, means

    def _cut(self, nll: Tensor) -> Tensor:
        return nll.mean(1)

    def _enter(self, layer: int, hidden: Tensor) -> None:
        """Keep what enters the first layers, as far as it fits for all blocks."""
        per_layer = len(self.samples) * hidden.shape[1] * hidden.shape[2] * hidden.element_size()
        if layer == 0 or (layer + 1) * per_layer <= ENTRY_BYTES:
            self._entries[layer].append(hidden)


def _first_pruned(structure: Structure, plan: Plan) -> int:
    """Return the first layer that loses a unit; the last layer where none does."""
    pruned = (g.layer for g in structure.groups if len(plan.keep[g.name]) < g.units)
    return min(pruned, default=structure.num_layers - 1)
