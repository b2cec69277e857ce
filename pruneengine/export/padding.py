"""Zero padding of layers: they become wider and compute the same function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.model import Member, distinct_linears, find_groups, get_linear
from pruneengine.model.config_sync import layer_counts
from pruneengine.model.edit import replace_bias, replace_weight, set_counts


def widen(tensor: Tensor, dim: int, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Return a tensor with zeros at the end of each of the axes that ``dim`` is made of.

    Args:
        tensor: any shape; ``tensor.shape[dim]`` is the product of ``old``.
        dim: the dimension that grows.
        old: present sizes of the axes, outermost first.
        new: new sizes of the axes, none smaller.
    """
    split = tensor.unflatten(dim, list(old))
    wide = split.new_zeros(*split.shape[:dim], *new, *split.shape[dim + len(old) :])
    wide[(slice(None),) * dim + tuple(slice(size) for size in old)] = split
    return wide.flatten(dim, dim + len(new) - 1)


@torch.no_grad()
def pad_units(model: nn.Module, units: Mapping[str, int]) -> None:
    """Append units of zeros to groups, in place, without changing the function of the model.

    The query heads of a new key-value head attend to zeros, and their output meets zero columns; so does that of new
    channels.

    Args:
        model: model of any family.
        units: new number of units by group name, none smaller than before.
    """
    structure = find_groups(model)
    for name, count in units.items():
        group = structure.by_name[name]
        for member in distinct_linears(group.members):
            linear = get_linear(model, member.module)
            if member.axis == 1:
                replace_weight(linear, widen(linear.weight, 1, (group.units, member.width), (count, member.width)))
                continue
            sharing = [other for other in group.members if other.module == member.module]
            replace_weight(linear, _more_rows(linear.weight, sharing, group.units, count))
            if linear.bias is not None:
                replace_bias(linear, _more_rows(linear.bias, sharing, group.units, count))
    after = find_groups(model)
    set_counts(model, after, layer_counts(after))


def _more_rows(rows: Tensor, sharing: Sequence[Member], old: int, new: int) -> Tensor:
    """Return rows ``(R, ...)`` of a linear, or its bias, with zero rows of new units at their members' places."""
    first, *others = sorted(sharing, key=lambda member: member.starts.start if member.starts else 0)
    if not others:
        return widen(rows, 0, (old, first.width), (new, first.width))
    assert first.starts is not None, "members that share a linear know where they start"
    if first.starts.step > first.width:
        # Unit by unit, of all members together.
        return widen(rows, 0, (old, first.starts.step), (new, first.starts.step))
    parts = [widen(member.select(rows), 0, (old, member.width), (new, member.width)) for member in (first, *others)]
    return torch.cat(parts)


@torch.no_grad()
def pad_model(model: nn.Module, heads: Sequence[int], kv_heads: Sequence[int], channels: Sequence[int]) -> None:
    """Widen every layer of a model of Llama's layout to the given counts, in place, without changing its function.

    A new query head reads zeros and its output meets zero columns, whichever key it attends to. It stands behind the
    old query heads of its key-value head, so that grouped attention still pairs them.

    Args:
        model: model whose layers have Llama's linears.
        heads: query heads of every layer, a multiple of ``kv_heads``, no fewer per key-value head than before.
        kv_heads: key-value heads of every layer, no fewer than before.
        channels: MLP channels of every layer, no fewer than before.
    """
    structure = find_groups(model)
    counts = {"heads": kv_heads, "mlp": channels}
    pad_units(model, {group.name: counts[group.kind][group.layer] for group in structure.groups})
    head_dim, before = structure.head_dim, structure.queries_per_kv
    layers: Any = model.get_submodule(structure.family.layers)
    for layer, queries, keys in zip(layers, heads, kv_heads, strict=True):
        axes = ((keys, before, head_dim), (keys, queries // keys, head_dim))
        query, out = layer.self_attn.q_proj, layer.self_attn.o_proj
        replace_weight(query, widen(query.weight, 0, *axes))
        replace_weight(out, widen(out.weight, 1, *axes))
        if query.bias is not None:
            replace_bias(query, widen(query.bias, 0, *axes))
        layer.self_attn.num_key_value_groups = queries // keys
