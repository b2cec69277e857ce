"""A backward pass one decoder layer at a time, for quantities that need weight gradients.

The forward pass keeps only what enters each layer. Going back, a layer is run again for every batch with its stored
input, so the gradients of all samples meet in that layer before the next one is touched: one layer's gradient is all
that ever exists. Per sample it is a single linear's, and for several sets of samples a tile of it.
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
from pruneengine.model.loss import token_nll_backward

_EACH = frozenset({"fisher", "abs_each"})


def backward_by_layer(
    model: nn.Module,
    structure: Structure,
    groups: tuple[Group, ...],
    pieces: list[tuple[slice, Tensor]],
    recorder: Recorder,
    wanted: frozenset[str],
    layers: range,
    scale: float,
    recording: Callable[[int], contextlib.AbstractContextManager],
) -> Tensor:
    """Record the elementwise quantities ``wanted`` of ``layers``; returns the loss of each sample, float32 ``[N]``.

    Args:
        model: with frozen weights.
        structure: the model's structure.
        groups: the groups to record.
        pieces: ``(rows, tokens)`` a batch.
        recorder: where the quantities go.
        wanted: names of elementwise quantities.
        layers: the layers to record; the backward pass ends at the first.
        scale: loss scale, divided out again.
        recording: hooks for a layer's other quantities, active while that layer runs with gradients.
    """
    inputs, gradients, losses = _forward(model, structure, pieces, layers, scale)
    for index in track(range(structure.num_layers - 1, layers[0] - 1, -1), "backward by layer"):
        layer = model.get_submodule(structure.layer_path(index))
        members = distinct_linears(m for g in groups if g.layer == index for m in g.members)
        sums = [_MemberSums(member, get_linear(model, member.module), recorder, wanted, scale) for member in members]
        with contextlib.ExitStack() as hooks:
            if index in layers:
                hooks.enter_context(recording(index))
            for each in sums:
                hooks.enter_context(each.linear.register_forward_hook(each.on_forward))
            for batch, (rows, _tokens) in enumerate(pieces):
                recorder.rows = rows
                hidden, arguments = inputs[index][batch]
                hidden = hidden.requires_grad_(True)
                with torch.enable_grad():
                    out = layer(hidden, **arguments)
                _tensor(out).backward(gradients[batch])
                gradients[batch] = hidden.grad
        inputs[index] = []
        for each in sums:
            each.finish()
    return losses


def _forward(
    model: nn.Module, structure: Structure, pieces: list[tuple[slice, Tensor]], layers: range, scale: float
) -> tuple[list[list[tuple[Tensor, dict]]], list[Tensor], Tensor]:
    """What enters each layer per batch, the loss gradient at the last layer's output per batch, and the losses."""
    body, head, logit_options = causal_parts(model)
    norm = model.get_submodule(structure.family.final_norm)
    inputs: list[list[tuple[Tensor, dict]]] = [[] for _ in range(structure.num_layers)]
    last: list[Tensor] = []

    def keep(index: int):
        return lambda _module, args, kwargs: inputs[index].append((args[0].detach(), kwargs))

    gradients, losses = [], []
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for index in range(layers[0], structure.num_layers):
            layer = model.get_submodule(structure.layer_path(index))
            hooks.enter_context(layer.register_forward_pre_hook(keep(index), with_kwargs=True))
        hooks.enter_context(norm.register_forward_pre_hook(lambda _module, args: last.append(args[0].detach())))
        for _rows, tokens in track(pieces, "forward"):
            last.clear()
            body(input_ids=tokens, use_cache=False)
            before_norm = last[0].requires_grad_(True)
            with torch.enable_grad():
                predicting = norm(before_norm)[:, :-1]
            weight = scale / (tokens.shape[1] - 1)
            nll, gradient = token_nll_backward(predicting.detach(), head, tokens[:, 1:], weight, **logit_options)
            predicting.backward(gradient)
            gradients.append(before_norm.grad)
            losses.append(nll.mean(1).cpu())
    return inputs, gradients, torch.cat(losses)


class _MemberSums:
    """The elementwise quantities of one linear, gathered as its gradients arrive."""

    def __init__(self, member: Member, linear: nn.Linear, recorder: Recorder, wanted: frozenset[str], scale: float):
        self.member, self.linear, self.recorder, self.wanted, self.scale = member, linear, recorder, wanted, scale
        self.sums = None
        if wanted & WHOLE_SET:
            about = (linear.weight, wanted, recorder.num_samples, scale)
            self.sums = ManySets(*about, recorder.sets) if len(recorder.sets) > 1 else OneSet(*about)

    def on_forward(self, _linear: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        x = self.recorder.by_sample(args[0].detach())
        y.register_hook(lambda dy: self._add(x, self.recorder.by_sample(dy.detach())))

    @torch.no_grad()
    def _add(self, x: Tensor, dy: Tensor) -> None:
        if self.wanted & _EACH:
            # [N, 3, size]: signed, absolute and squared sums of each sample's w * g, its gradient never stored.
            sums = ops.taylor_scores_outer(self.linear.weight.detach(), dy, x, per_sample=True)[self.member.axis]
            for quantity, form in (("abs_each", 1), ("fisher", 2)):
                if quantity in self.wanted:
                    self.recorder.write(quantity, self.member.module, sums[:, form] / self.scale**form)
        if self.sums is not None:
            self.sums.add(x, dy)

    @torch.no_grad()
    def finish(self) -> None:
        if self.sums is not None:
            for quantity, values in self.sums.finish(self.member.axis).items():
                self.recorder.write_total(quantity, self.member.module, values)


def _tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
