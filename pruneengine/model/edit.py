"""Permanent changes of a model: other weights, and fewer units, experts and layers.

This module and :mod:`pruneengine.model.masking`, whose changes end with a ``with`` block, are the only ones that change
the modules of a model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.common.optional_imports import require_extra
from pruneengine.model import (
    Group,
    Structure,
    distinct_linears,
    get_linear,
    text_config,
)
from pruneengine.ops.bits import as_integers


def set_weight(linear: nn.Linear, values: Tensor) -> None:
    """Write values ``[out, in]`` of any dtype into a weight, in place and rounded to its dtype."""
    with torch.no_grad():
        linear.weight.copy_(values)


def zero_weights(linear: nn.Linear, mask: Tensor) -> None:
    """Set the weights at True of a bool ``[out, in]`` to zero, in place."""
    weight = linear.weight.detach()
    if weight.device.type == "cpu":
        # One AND with all bits or none: masked_fill_ is not vectorised there.
        bits = as_integers(weight)
        bits.bitwise_and_(mask.to(bits.dtype) - 1)
    else:
        weight.masked_fill_(mask, 0)


def zero_of_groups(linear: nn.Linear, n: int, m: int, norm: Tensor) -> None:
    """Keep n of every m consecutive weights of a row, in place: those of largest ``|W| * norm``, norm ``[in]``."""
    weight = linear.weight.detach()
    if weight.is_contiguous():
        ops.nm_apply(weight, n, m, norm, out=weight)
    else:
        weight.copy_(ops.nm_apply(weight, n, m, norm))


def replace_weight(linear: nn.Linear, values: Tensor) -> None:
    """Give a linear another weight ``[out, in]`` of any shape, and the sizes that go with it."""
    linear.weight = nn.Parameter(values, requires_grad=linear.weight.requires_grad)
    linear.out_features, linear.in_features = values.shape


def replace_bias(linear: nn.Linear, values: Tensor | None) -> None:
    """Give a linear another bias ``[out]``, or none."""
    own = linear.weight if linear.bias is None else linear.bias
    bias = None if values is None else nn.Parameter(values, requires_grad=own.requires_grad)
    linear.bias = bias  # type: ignore[assignment]  # torch's stubs: every linear has a bias


def complete_biases(model: nn.Module, structure: Structure) -> None:
    """Give the last linear of every group a bias wherever the same linear of another layer has one.

    Linears that share its flag in the config get one, too, and the flag is set: a config can then describe the model.
    New biases are zeros, which change nothing.
    """
    ends: dict[str, list[Group]] = {}
    for group in structure.groups:
        ends.setdefault(group.part, []).append(group)
    for groups in ends.values():
        if not any(get_linear(model, group.members[-1].module).bias is not None for group in groups):
            continue
        for group in groups:
            flag, sharing = structure.family.bias_flag(structure.within(group.members[-1].module))
            for path in sharing:
                add_zero_bias(get_linear(model, f"{structure.layer_path(group.layer)}.{path}"))
            if flag is not None:
                setattr(text_config(model.config), flag, True)


def add_zero_bias(linear: nn.Linear) -> None:
    """Give a linear without a bias one of zeros."""
    if linear.bias is None:
        zeros = linear.weight.new_zeros(linear.weight.shape[0])  # type: ignore[unreachable]  # torch's stubs, as above
        replace_bias(linear, zeros)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert all parameters to another dtype, and leave the buffers: frequencies of positions stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def narrow(model: nn.Module, group: Group, units: Tensor) -> None:
    """Keep the given units (int64, ascending) of a group, in every linear that has a share of it."""
    for member in distinct_linears(group.members):
        linear = get_linear(model, member.module)
        # Ascending: what members of one linear keep stays laid out as it was.
        index = torch.cat([m.indices(units) for m in group.members if m.module == member.module]).sort().values
        index = index.to(linear.weight.device)
        if member.axis == 1:
            replace_weight(linear, ops.gather_columns(linear.weight.detach(), index))
            continue
        replace_weight(linear, ops.gather_rows(linear.weight.detach(), index))
        if linear.bias is not None:
            replace_bias(linear, ops.gather_rows(linear.bias.detach(), index))


def drop_layers(model: nn.Module, structure: Structure, kept: tuple[int, ...]) -> None:
    """Keep the given decoder layers, renumbered so that each finds its own entry in a KV cache."""
    parent, name = structure.family.layers.rsplit(".", 1)
    remaining = nn.ModuleList(model.get_submodule(structure.layer_path(i)) for i in kept)
    for index, layer in enumerate(remaining):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]  # torch's stubs: tensors and modules only
    setattr(model.get_submodule(parent), name, remaining)
    config = text_config(model.config)
    for name in structure.family.layer_lists:
        if getattr(config, name, None):
            setattr(config, name, [getattr(config, name)[i] for i in kept])


def drop_experts(model: nn.Module, structure: Structure, kept: Mapping[int, Sequence[int]]) -> None:
    """Keep the given experts (ascending indices by layer), and their rows of the routers."""
    if not kept:
        return
    with require_extra("hf"):
        from pruneengine.model.modeling_pruned import keep_experts
    for layer, experts in kept.items():
        keep_experts(model.get_submodule(structure.layer_path(layer)), experts)


def count_experts(model: nn.Module, structure: Structure) -> None:
    """Set the number of experts that the loss balancing them reads: one number for all layers.

    Where layers differ in it, that loss is switched off in the config: a forward pass with it would fail.
    """
    if structure.family.experts is None:
        return
    counts = {len(structure.experts(layer)) for layer in range(structure.num_layers)}
    model.num_experts = max(counts)  # type: ignore[assignment]  # torch's stubs: tensors and modules only
    if len(counts) > 1:
        text_config(model.config).output_router_logits = False


def set_counts(model: nn.Module, structure: Structure, layers: Sequence[Mapping[str, int]]) -> None:
    """Write the numbers of heads that modules hold beside their weights, as :func:`layer_counts` gives them."""
    for index, counts in enumerate(layers):
        for path, value in counts.items():
            owner: Any = model.get_submodule(structure.layer_path(index))
            *parents, name = path.split(".")
            for parent in parents:
                owner, holder = getattr(owner, parent), owner
                if not isinstance(owner, nn.Module) and getattr(owner, name) != value:
                    # A config that all layers share: the others have other numbers.
                    owner = copy.copy(owner)
                    setattr(holder, parent, owner)
            setattr(owner, name, value)
