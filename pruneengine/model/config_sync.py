"""Widths of a model's layers, and its config in step with them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pruneengine.common.errors import InputError
from pruneengine.model import Structure, find_groups, get_linear, text_config
from pruneengine.model.experts import unfuse_experts
from pruneengine.model.finder import decoder_layers, module_list


def layer_widths(structure: Structure) -> list[dict[str, int]]:
    """Return heads, key-value heads and MLP channels of every decoder layer, by their config names.

    Mixtures of experts have ``num_experts`` and ``moe_intermediate_size``, the channels of the widest, and
    ``intermediate_size`` only for an MLP that all tokens share.
    """
    by_name = structure.by_name
    widths = []
    for layer in range(structure.num_layers):
        kv_heads = by_name[f"layers.{layer}.heads"].units
        of_layer = {"num_attention_heads": kv_heads * structure.queries_per_kv, "num_key_value_heads": kv_heads}
        if f"layers.{layer}.mlp" in by_name:
            of_layer["intermediate_size"] = by_name[f"layers.{layer}.mlp"].units
        if experts := structure.experts(layer):
            of_layer |= {"num_experts": len(experts), "moe_intermediate_size": max(e.units for e in experts)}
        widths.append(of_layer)
    return widths


def layer_counts(structure: Structure) -> list[dict[str, int]]:
    """Return the numbers of heads that modules of every decoder layer hold beside their weights, by path in it."""
    if structure.heads_reason:
        return [{} for _ in range(structure.num_layers)]
    counts = []
    for layer in range(structure.num_layers):
        kv_heads = structure.by_name[f"layers.{layer}.heads"].units
        heads = kv_heads * structure.queries_per_kv
        values = {"heads": heads, "kv_heads": kv_heads, "head_rows": heads * structure.head_dim}
        counts.append({path: values[count] for path, count in structure.family.counts})
    return counts


def sync_config(model: nn.Module) -> None:
    """Bring ``model.config`` in step with the modules, in place.

    Sets the number of layers, their attention types, the head size, the tie flag and the widths. Where layers differ
    the config carries the widest one's numbers, and ``config.pruneengine_widths`` those of each layer by name; in
    families of another layout than Llama's ``config.pruneengine_shapes`` has the shapes of each layer's linears, also
    where the config has no name for a width.
    ``config.pruneengine_biases`` names the linears of a layer whose bias no flag of the config can give.

    Raises:
        ValueError: as :func:`find_groups`; or the removed layers' attention types cannot be told.
    """
    structure = find_groups(model)
    causal: Any = model
    config, widths, family = text_config(causal.config), layer_widths(structure), structure.family
    config.num_hidden_layers = structure.num_layers
    if family.heads_name:
        config.head_dim = structure.head_dim
    head, embeddings = causal.get_output_embeddings(), causal.get_input_embeddings()
    causal.config.tie_word_embeddings = head.weight is embeddings.weight
    _sync_layer_types(model, structure)
    names = {
        "num_attention_heads": family.heads_name,
        "num_key_value_heads": family.kv_heads_name,
        "intermediate_size": family.mlp_name if family.mlp_out else None,
        "num_experts": family.experts and family.experts.count_name,
        "moe_intermediate_size": family.experts and family.experts.width_name,
    }
    for name, own in names.items():
        if own:
            setattr(config, own, max(layer[name] for layer in widths))
    if family.by_widths or not family.own_class:
        _set(config, "pruneengine_widths", widths if any(layer != widths[0] for layer in widths) else None)
    else:
        _set(config, "pruneengine_shapes", _unlike_config(model, structure, by_config_alone(model)))
    _set(config, "pruneengine_biases", _unflagged_biases(model, structure))


def by_config_alone(model: nn.Module) -> nn.Module:
    """Return the model that transformers builds from the config names that it knows, on the meta device.

    The config must be in step with the model.
    """
    config = copy.deepcopy(model.config)
    for name in ("pruneengine_widths", "pruneengine_shapes", "pruneengine_biases"):
        text_config(config).__dict__.pop(name, None)
    with torch.device("meta"):
        return unfuse_experts(type(model)(config))


def _unlike_config(model: nn.Module, structure: Structure, plain: nn.Module) -> list[dict[str, Any]] | None:
    """Return shapes and counts of every layer; None where the config alone gives a model of these shapes."""
    shapes = [_shapes(model, structure, layer) for layer in range(structure.num_layers)]
    if shapes == [_shapes(plain, structure, layer) for layer in range(structure.num_layers)]:
        return None
    counts = layer_counts(structure)
    return [shape | {"counts": count} for shape, count in zip(shapes, counts, strict=True)]


def _shapes(model: nn.Module, structure: Structure, layer: int) -> dict[str, Any]:
    path = structure.layer_path(layer)
    shapes = {name: list(get_linear(model, f"{path}.{name}").weight.shape) for name in structure.linears(layer)}
    if (experts := structure.family.experts) is None:
        return {"linears": shapes}
    return {"linears": shapes, "experts": len(module_list(model, f"{path}.{experts.path}"))}


def _set(config: Any, name: str, value: list[Any] | None) -> None:
    if value:
        setattr(config, name, value)
    else:
        config.__dict__.pop(name, None)


def _unflagged_biases(model: nn.Module, structure: Structure) -> list[str]:
    family = structure.family
    ends = [group.members[-1].module for group in structure.groups]
    biased = dict.fromkeys(structure.within(path) for path in ends if get_linear(model, path).bias is not None)
    unflagged = [path for path in biased if family.bias_flag(path)[0] is None]
    if not unflagged or family.by_widths or not family.own_class:
        return unflagged
    plain = by_config_alone(model).get_submodule(structure.layer_path(0))
    return [path for path in unflagged if get_linear(plain, path).bias is None]


def _sync_layer_types(model: nn.Module, structure: Structure) -> None:
    config = text_config(model.config)
    types = getattr(config, "layer_types", None)
    if not types:
        return
    if len(types) != structure.num_layers:
        layers = decoder_layers(model, structure.family)
        known = [getattr(layer.self_attn, "layer_type", None) for layer in layers]
        if None in known and len(set(types)) > 1:
            raise InputError(f"config.layer_types has {len(types)} entries for {structure.num_layers} layers; trim it")
        types = [kind or types[0] for kind in known]
        config.layer_types = types
    if getattr(config, "max_window_layers", None) is not None:
        sliding = types.index("sliding_attention") if "sliding_attention" in types else len(types)
        config.max_window_layers = min(config.max_window_layers, sliding)
