"""Backward pass one decoder layer at a time, for quantities that need weight gradients.

The forward pass keeps the hidden states in front of each layer and nothing else. Going back, a layer is run again for
every batch on its stored input, so the gradients of all samples meet in that layer before the next one is touched: one
layer's gradient is all that ever exists. Per sample it is a single linear's, and for several sets of samples a tile of
it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.calibration.gradient_sums import WHOLE_SET, ManySets, OneSet
from pruneengine.calibration.recorder import Recorder
from pruneengine.common.progress import track
from pruneengine.model import Group, Member, Structure, distinct_linears, get_linear
from pruneengine.model.decoder import causal_parts
from pruneengine.model.layer_runner import LayerRunner
from pruneengine.model.loss import token_nll_backward

_PER_SAMPLE = frozenset({"fisher", "abs_each"})


def backward_by_layer(
    model: nn.Module,
    structure: Structure,
    groups: tuple[Group, ...],
    pieces: list[tuple[slice, Tensor]],
    recorder: Recorder,
    quantities: frozenset[str],
    layers: range,
    scale: float,
    recording: Callable[[int], contextlib.AbstractContextManager[None]],
) -> Tensor:
    """Record elementwise quantities, and return the loss of each sample, float32 ``[N]``.

    Args:
        model: with frozen weights.
        structure: the model's structure.
        groups: the groups to record.
        pieces: ``(rows, tokens)`` per batch.
        recorder: receives the quantities.
        quantities: names of elementwise quantities.
        layers: the layers to record; the backward pass ends at the first.
        scale: loss scale, divided out again.
        recording: hooks for a layer's other quantities, active while that layer runs with gradients.
    """
    runner = LayerRunner(model, structure, [tokens for _rows, tokens in pieces])
    inputs = _forward(runner, structure.num_layers, layers)
    gradients, losses = _loss_backward(model, structure, pieces, inputs.pop(), scale)
    for index in track(range(structure.num_layers - 1, layers[0] - 1, -1), "backward by layer"):
        members = distinct_linears(m for g in groups if g.layer == index for m in g.members)
        sums = [
            _MemberSums(member, get_linear(model, member.module), recorder, quantities, scale) for member in members
        ]
        with contextlib.ExitStack() as hooks:
            if index in layers:
                hooks.enter_context(recording(index))
            for member_sums in sums:
                hooks.enter_context(member_sums.linear.register_forward_hook(member_sums.on_forward))
            for batch, ((rows, _tokens), hidden) in enumerate(zip(pieces, inputs.pop(), strict=True)):
                recorder.rows = rows
                hidden.requires_grad_(True)
                runner.run(index, hidden, gradients=True).backward(gradients[batch])
                gradients[batch] = _gradient(hidden)
        for member_sums in sums:
            member_sums.finish()
    return losses


def _forward(runner: LayerRunner, num_layers: int, layers: range) -> list[list[Tensor]]:
    """Return hidden states per batch in front of each layer from the first to record on, and behind the last."""
    inputs: list[list[Tensor]] = []
    # Taken from the runner, so that they are freed layer by layer.
    hidden, runner.inputs = runner.inputs, []
    for layer in track(range(num_layers), "forward"):
        if layer >= layers[0]:
            inputs.append(hidden.copy())
        for batch, h in enumerate(hidden):
            hidden[batch] = runner.run(layer, h)
    return [*inputs, hidden]


def _loss_backward(
    model: nn.Module, structure: Structure, pieces: list[tuple[slice, Tensor]], outputs: list[Tensor], scale: float
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of the mean token losses at the last layer's outputs, per batch, and the losses ``[N]``.

    The gradients take the place of the outputs, batch by batch, so that both never exist for all samples.
    """
    _, head, logit_options = causal_parts(model)
    norm = model.get_submodule(structure.family.final_norm)
    losses = []
    for batch, (_rows, tokens) in enumerate(pieces):
        hidden = outputs[batch].requires_grad_(True)
        with torch.enable_grad():
            predicting = norm(hidden)[:, :-1]
        weight = scale / (tokens.shape[1] - 1)
        nll, gradient = token_nll_backward(predicting.detach(), head, tokens[:, 1:], weight, **logit_options)
        predicting.backward(gradient)
        outputs[batch] = _gradient(hidden)
        losses.append(nll.mean(1).cpu())
    return outputs, torch.cat(losses)


def _gradient(x: Tensor) -> Tensor:
    """Return the gradient that a backward pass left at a tensor, and take it away."""
    gradient, x.grad = x.grad, None
    assert gradient is not None
    return gradient


class _MemberSums:
    """The elementwise quantities of one linear, gathered as its gradients arrive."""

    def __init__(
        self, member: Member, linear: nn.Linear, recorder: Recorder, quantities: frozenset[str], scale: float
    ) -> None:
        self.member, self.linear, self.recorder, self.scale = member, linear, recorder, scale
        self.quantities = quantities
        self.sums: OneSet | ManySets | None = None
        if quantities & WHOLE_SET:
            about = (linear.weight, quantities, recorder.num_samples, scale)
            self.sums = ManySets(*about, recorder.sets) if len(recorder.sets) > 1 else OneSet(*about)

    def on_forward(self, _linear: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        """Wait, as a forward hook, for the gradient of the linear's output."""
        x = self.recorder.by_sample(args[0].detach())
        y.register_hook(lambda dy: self._add(x, self.recorder.by_sample(dy.detach())))

    @torch.no_grad()
    def _add(self, x: Tensor, dy: Tensor) -> None:
        if self.quantities & _PER_SAMPLE:
            # [N, 3, size]: signed, absolute and squared sums of each sample's w * g, its gradient never stored.
            sums = ops.taylor_scores_outer(self.linear.weight.detach(), dy, x, per_sample=True)[self.member.axis]
            for quantity, form in (("abs_each", 1), ("fisher", 2)):
                if quantity in self.quantities:
                    self.recorder.write(quantity, self.member.module, sums[:, form] / self.scale**form)
        if self.sums is not None:
            self.sums.add(x, dy)

    @torch.no_grad()
    def finish(self) -> None:
        """Write the quantities of whole sets of samples to the recorder."""
        if self.sums is not None:
            for quantity, values in self.sums.finish(self.member.axis).items():
                self.recorder.write_total(quantity, self.member.module, values)
