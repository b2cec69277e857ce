"""The widths that a model's layers really have, and a config that says the same."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruneengine.structure import Structure, find_groups


def layer_widths(structure: Structure) -> list[dict[str, int]]:
    """Heads, key-value heads and MLP channels of every decoder layer, by their config names."""
    by_name = structure.by_name
    widths = []
    for layer in range(structure.num_layers):
        kv_heads = by_name[f"layers.{layer}.heads"].units
        widths.append(
            {
                "num_attention_heads": kv_heads * structure.queries_per_kv,
                "num_key_value_heads": kv_heads,
                "intermediate_size": by_name[f"layers.{layer}.mlp"].units,
            }
        )
    return widths


def sync_config(model: nn.Module) -> None:
    """Bring ``model.config`` in step with the modules, in place.

    Sets the number of layers, their attention types, the head size, the tie flag and the widths. Where layers differ
    the config carries the widest one's numbers, and ``config.pruneengine_widths`` those of each layer by name.
    ``config.pruneengine_biases`` names the linears of a layer whose bias no flag of the config can give.

    Raises:
        ValueError: as :func:`find_groups`; or the removed layers' attention types cannot be told.
    """
    structure = find_groups(model)
    config, widths = model.config, layer_widths(structure)
    config.num_hidden_layers = structure.num_layers
    config.head_dim = structure.head_dim
    config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    _sync_layer_types(model, structure)
    for name in widths[0]:
        setattr(config, name, max(layer[name] for layer in widths))
    _set(config, "pruneengine_widths", widths if any(layer != widths[0] for layer in widths) else None)
    _set(config, "pruneengine_biases", _unflagged_biases(model, structure))


def _set(config: Any, name: str, value: list | None) -> None:
    if value:
        setattr(config, name, value)
    else:
        config.__dict__.pop(name, None)


def _unflagged_biases(model: nn.Module, structure: Structure) -> list[str]:
    family = structure.family
    layer = model.get_submodule(structure.layer_path(0))
    return [
        path
        for path in (family.attention_out, family.mlp_out)
        if layer.get_submodule(path).bias is not None and family.bias_flag(path)[0] is None
    ]


def _sync_layer_types(model: nn.Module, structure: Structure) -> None:
    config = model.config
    types = getattr(config, "layer_types", None)
    if not types:
        return
    if len(types) != structure.num_layers:
        layers = model.get_submodule(structure.family.layers)
        known = [getattr(layer.self_attn, "layer_type", None) for layer in layers]
        if None in known and len(set(types)) > 1:
            raise ValueError(f"config.layer_types has {len(types)} entries for {structure.num_layers} layers; trim it")
        types = [kind or types[0] for kind in known]
        config.layer_types = types
    if getattr(config, "max_window_layers", None) is not None:
        sliding = types.index("sliding_attention") if "sliding_attention" in types else len(types)
        config.max_window_layers = min(config.max_window_layers, sliding)
