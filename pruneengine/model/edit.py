"""What :func:`pruneengine.structured.apply.compact`, and nobody else, does to the modules of a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

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


def narrow(model: nn.Module, group: Group, units: Tensor) -> None:
    """Keep these units (int64, ascending) of a group, in every linear that has a share of it."""
    for member in distinct_linears(group.members):
        linear = get_linear(model, member.module)
        # Ascending: what members of one linear keep stays laid out as it was.
        index = torch.cat([m.indices(units) for m in group.members if m.module == member.module]).sort().values
        index = index.to(linear.weight.device)
        if member.axis == 0:
            replace(linear, "weight", ops.gather_rows(linear.weight.detach(), index))
            if linear.bias is not None:
                replace(linear, "bias", ops.gather_rows(linear.bias.detach(), index))
            linear.out_features = len(index)
        else:
            replace(linear, "weight", ops.gather_columns(linear.weight.detach(), index))
            linear.in_features = len(index)


def replace(linear: nn.Linear, name: str, values: Tensor) -> None:
    """Give a linear another weight or bias, of any shape."""
    required = getattr(linear, name).requires_grad
    setattr(linear, name, nn.Parameter(values, requires_grad=required))


def drop_layers(model: nn.Module, structure: Structure, kept: tuple[int, ...]) -> None:
    """Renumber the remaining layers, so that each finds its own entry in a KV cache."""
    parent, name = structure.family.layers.rsplit(".", 1)
    layers = model.get_submodule(structure.family.layers)
    remaining = nn.ModuleList(layers[i] for i in kept)
    for index, layer in enumerate(remaining):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    setattr(model.get_submodule(parent), name, remaining)
    config = text_config(model.config)
    for name in structure.family.layer_lists:
        if getattr(config, name, None):
            setattr(config, name, [getattr(config, name)[i] for i in kept])


def drop_experts(model: nn.Module, structure: Structure, kept: Mapping[int, Sequence[int]]) -> None:
    """Leave these experts (ascending indices by layer), and their rows of the routers."""
    if not kept:
        return
    with require_extra("hf"):
        from pruneengine.model.modeling_pruned import keep_experts
    for layer, experts in kept.items():
        keep_experts(model.get_submodule(structure.layer_path(layer)), experts)


def count_experts(model: nn.Module, structure: Structure) -> None:
    """Bring the loss that balances experts in step: it reads how many every layer has, and wants equally many.

    Where layers differ it is not asked for, even if the config did: a forward pass with it fails.
    """
    if structure.family.experts is None:
        return
    counts = {len(structure.experts(layer)) for layer in range(structure.num_layers)}
    model.num_experts = max(counts)
    if len(counts) > 1:
        text_config(model.config).output_router_logits = False


def set_counts(model: nn.Module, structure: Structure, layers: Sequence[Mapping[str, int]]) -> None:
    """Write the numbers of heads that modules hold beside their weights, as :func:`layer_counts` gives them."""
    for index, counts in enumerate(layers):
        for path, value in counts.items():
            owner = model.get_submodule(structure.layer_path(index))
            *parents, name = path.split(".")
            for parent in parents:
                owner, holder = getattr(owner, parent), owner
                if not isinstance(owner, nn.Module) and getattr(owner, name) != value:
                    # A config that all layers share: the others have other numbers.
                    owner = copy.copy(owner)
                    setattr(holder, parent, owner)
            setattr(owner, name, value)


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


def set_weight(linear: nn.Linear, values: Tensor) -> None:
    """Write ``[out, in]`` values of any dtype into a weight, in place and rounded to its dtype."""
    with torch.no_grad():
        linear.weight.copy_(values)
