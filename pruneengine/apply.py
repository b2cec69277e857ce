"""The only place where a model changes: mask (undoable) and compact (final).

Zeroing what a removed head or channel feeds into o_proj or down_proj gives the same logits as removing it, so a
candidate is tried by mask and only the final plan is compacted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.plan import Plan
from pruneengine.structure import Group, Member, Structure, find_groups, get_linear, unit_slices
from pruneengine.widths import sync_config


@contextlib.contextmanager
def mask(model: nn.Module, plan: Plan, *, structure: Structure | None = None) -> Iterator[nn.Module]:
    """Within the context the model computes what the compacted model would; afterwards it is as before.

    Inputs of o_proj and down_proj are multiplied by a 0/1 vector, and removed decoder layers pass their input on
    (run it with ``use_cache=False``: a skipped layer leaves no cache entry).
    """
    structure = structure or find_groups(model)
    plan.check(structure)
    with contextlib.ExitStack() as undo:
        for layer in set(range(structure.num_layers)) - set(plan.kept_layers):
            module = model.get_submodule(structure.layer_path(layer))
            undo.enter_context(_identity(module))
        partial = {n: kept for n, kept in plan.keep.items() if len(kept) < structure.by_name[n].units}
        undo.enter_context(gate(model, structure, {n: _kept(plan.units[n], kept) for n, kept in partial.items()}))
        yield model


@contextlib.contextmanager
def gate(model: nn.Module, structure: Structure, gates: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Within the context every unit's output is multiplied by its gate; gradients reach the gates.

    Args:
        model: whose o_proj and down_proj are hooked.
        structure: of the model.
        gates: ``[units]`` per group name; 1 changes nothing, 0 is what :func:`mask` does to a removed unit.
    """
    with contextlib.ExitStack() as undo:
        for name, values in gates.items():
            out = structure.by_name[name].members[-1]
            linear = get_linear(model, out.module)
            undo.enter_context(linear.register_forward_pre_hook(_multiply_hook(linear, out, values)))
        yield model


def compact(model: nn.Module, plan: Plan, *, structure: Structure | None = None) -> nn.Module:
    """Remove what the plan does not keep, in place, and bring the config into step. Returns the model.

    The kept rows and columns are gathered by :func:`pruneengine.ops.gather_rows` and
    :func:`~pruneengine.ops.gather_columns`, one linear at a time, so the peak is the model plus one matrix.
    """
    structure = structure or find_groups(model)
    plan.check(structure)
    for name, kept in plan.keep.items():
        group = structure.by_name[name]
        if len(kept) < group.units:
            _narrow(model, group, kept)
    if len(plan.kept_layers) < structure.num_layers:
        _drop_layers(model, structure, plan.kept_layers)
    sync_config(model)
    return model


@contextlib.contextmanager
def _identity(layer: nn.Module) -> Iterator[None]:
    layer.forward = lambda hidden_states, *_args, **_kwargs: hidden_states
    try:
        yield
    finally:
        del layer.forward


def _as_tensor(units: tuple[int, ...]) -> Tensor:
    """int64 ``[K]``; torch.tensor looks at every element of a tuple several times."""
    return torch.from_numpy(np.fromiter(units, np.int64, len(units)))


def _kept(units: int, kept: tuple[int, ...]) -> Tensor:
    """1 for the units that stay, else 0: float32 ``[units]``."""
    return torch.zeros(units).index_fill_(0, _as_tensor(kept), 1)


def _multiply_hook(linear: nn.Linear, out: Member, gates: Tensor):
    factors = gates.to(linear.weight).repeat_interleave(out.width)
    return lambda _module, args: (args[0] * factors, *args[1:])


def _narrow(model: nn.Module, group: Group, kept: tuple[int, ...]) -> None:
    units = _as_tensor(kept)
    indices = {width: unit_slices(units, width) for width in {member.width for member in group.members}}
    for member in group.members:
        linear = get_linear(model, member.module)
        index = indices[member.width].to(linear.weight.device)
        if member.axis == 0:
            _replace(linear, "weight", ops.gather_rows(linear.weight.detach(), index))
            if linear.bias is not None:
                _replace(linear, "bias", ops.gather_rows(linear.bias.detach(), index))
            linear.out_features = len(index)
        else:
            _replace(linear, "weight", ops.gather_columns(linear.weight.detach(), index))
            linear.in_features = len(index)


def _replace(linear: nn.Linear, name: str, values: Tensor) -> None:
    required = getattr(linear, name).requires_grad
    setattr(linear, name, nn.Parameter(values, requires_grad=required))


def _drop_layers(model: nn.Module, structure: Structure, kept: tuple[int, ...]) -> None:
    """Renumber the remaining layers, so that each finds its own entry in a KV cache."""
    parent, name = structure.family.layers.rsplit(".", 1)
    layers = model.get_submodule(structure.family.layers)
    remaining = nn.ModuleList(layers[i] for i in kept)
    for index, layer in enumerate(remaining):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    setattr(model.get_submodule(parent), name, remaining)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
