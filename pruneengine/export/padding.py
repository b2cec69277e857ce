"""Zeros around the weights of a layer: wider, and still the same function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneengine.layout import LINEARS, layout_of


def widen(tensor: Tensor, dim: int, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Zeros at the end of each of the axes that ``dim`` is made of.

    Args:
        tensor: any shape; ``tensor.shape[dim]`` is the product of ``old``.
        dim: the dimension that grows.
        old: sizes of its axes, outermost first.
        new: the sizes that they get, none smaller.
    """
    split = tensor.unflatten(dim, list(old))
    wide = split.new_zeros(*split.shape[:dim], *new, *split.shape[dim + len(old) :])
    wide[(slice(None),) * dim + tuple(slice(size) for size in old)] = split
    return wide.flatten(dim, dim + len(new) - 1)


@torch.no_grad()
def pad_model(model: nn.Module, heads: Sequence[int], kv_heads: Sequence[int], channels: Sequence[int]) -> None:
    """Widen every layer of a model to the given counts, in place, without changing what it computes.

    A new query head reads zeros and its output meets zero columns, whichever key it looks at; so does a new channel.
    New query heads stand behind the old ones of their key-value head, so that grouped attention still pairs them.

    Args:
        model: of a family of :data:`pruneengine.layout.FAMILIES`.
        heads: query heads of every layer, a multiple of ``kv_heads``, no fewer for a key-value head than before.
        kv_heads: key-value heads of every layer, no fewer than before.
        channels: MLP channels of every layer, no fewer than before.
    """
    layout = layout_of(model)
    for index, layer in enumerate(model.model.layers):
        now, then = layout.kv_heads[index], kv_heads[index]
        groups = layout.heads[index] // now, heads[index] // then
        queries = ((now, groups[0], layout.head_dim), (then, groups[1], layout.head_dim))
        keys = ((now, layout.head_dim), (then, layout.head_dim))
        units = ((layout.channels[index],), (channels[index],))
        rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": units, "up_proj": units}
        columns = {"o_proj": queries, "down_proj": units}
        for path in LINEARS:
            linear, name = layer.get_submodule(path), path.split(".")[1]
            if name in rows:
                linear.weight = nn.Parameter(widen(linear.weight, 0, *rows[name]))
                if linear.bias is not None:
                    linear.bias = nn.Parameter(widen(linear.bias, 0, *rows[name]))
            else:
                linear.weight = nn.Parameter(widen(linear.weight, 1, *columns[name]))
            linear.out_features, linear.in_features = linear.weight.shape
        layer.self_attn.num_key_value_groups = groups[1]
