"""Rewriting a model as a transformers class that computes the same function with Llama's linears.

Baichuan becomes Llama, Phi-3 becomes Mistral; fused linears are split. Used for saving and for export.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruneengine.model import Family, Member, Structure, find_groups
from pruneengine.model.config_sync import layer_widths, sync_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LLAMA = Family(())
SAME_IN_CONFIG = (
    "vocab_size", "hidden_size", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    "sliding_window", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def model_to_save(model: nn.Module) -> nn.Module:
    """Return the model that a checkpoint of ``model`` holds.

    It is the model itself, or its equivalent if transformers has no class for it. Linears that the equivalent splits
    are copied. Every other weight is shared, so neither model may change while both are in use.

    Raises:
        ValueError: as :func:`pruneengine.model.find_groups`.
    """
    structure = find_groups(model)
    return model if structure.family.own_class else _equivalent(model, structure)


def split_fused_linears(model: nn.Module) -> nn.Module:
    """Return the model's equivalent, or the model if it has none; weights and errors as :func:`model_to_save`."""
    structure = find_groups(model)
    return _equivalent(model, structure) if structure.family.equivalent else model


def written_linears(structure: Structure) -> dict[str, tuple[str, ...]]:
    """Return the parts in which a checkpoint holds each split linear of the model, by the linear's path.

    Empty if no linear is split.
    """
    if structure.family.own_class:
        return {}
    return {module: tuple(name for name, _ in parts) for module, parts in _parts(structure).items()}


def _equivalent(model: PreTrainedModel, structure: Structure) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    from pruneengine.model.modeling_pruned import add_bias, resize_layer

    weights = dict(_weights(model, structure))
    attention = (LLAMA.query, LLAMA.key, LLAMA.value, LLAMA.attention_out)
    config = AutoConfig.for_model(
        structure.family.equivalent,
        # Layers get their own widths below; a number of heads that does not divide the hidden size is refused here.
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=1,
        head_dim=structure.head_dim,
        num_hidden_layers=structure.num_layers,
        attention_bias=_any_bias(weights, LLAMA.query, LLAMA.attention_out),
        mlp_bias=_any_bias(weights, *(path for path in LLAMA.linears if path not in attention)),
        **_same(model.config),
    )
    with torch.device("meta"):
        equivalent = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
        for layer, widths in zip(equivalent.get_submodule(LLAMA.layers), layer_widths(structure), strict=True):
            resize_layer(layer, **widths)
            # Biases that no flag of the equivalent's config gives.
            for path in LLAMA.linears:
                if layer.get_submodule(path).bias is None and _any_bias(weights, path):
                    add_bias(layer, path)
    for name, parameter in equivalent.named_parameters(remove_duplicate=False):
        if name.endswith(".bias") and name not in weights:
            weights[name] = torch.zeros(parameter.shape, dtype=model.dtype, device=model.device)
    equivalent.load_state_dict(weights, strict=True, assign=True)
    equivalent.tie_weights()
    # The frequencies of the positions are no weights, so they are still on the meta device.
    with model.device:
        equivalent.model.rotary_emb = type(equivalent.model.rotary_emb)(config)
    equivalent.generation_config = model.generation_config
    sync_config(equivalent)
    return equivalent.requires_grad_(False).eval()


def _parts(structure: Structure) -> dict[str, list[tuple[str, Member]]]:
    """Return for every linear that members share, the equivalent's linear for each of the members."""
    parts: dict[str, list[tuple[str, Member]]] = {}
    for group in structure.groups:
        names = (LLAMA.query, LLAMA.key, LLAMA.value) if group.kind == "heads" else LLAMA.mlp_in
        shared = [(member.starts.start, member) for member in group.members if member.starts is not None]
        # Queries start before keys and values, gate before up.
        for (_, member), name in zip(sorted(shared, key=itemgetter(0)), names, strict=False):
            parts.setdefault(member.module, []).append((f"{structure.layer_path(group.layer)}.{name}", member))
    return parts


def _weights(model: nn.Module, structure: Structure) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's weights under the equivalent's names."""
    parts = _parts(structure)
    for path, tensor in model.named_parameters(remove_duplicate=False):
        module, _, kind = path.rpartition(".")
        if module not in parts:
            yield path, tensor.detach()
        for name, member in parts.get(module, ()):
            yield f"{name}.{kind}", member.select(tensor.detach()).clone()


def _any_bias(weights: dict[str, Tensor], *paths: str) -> bool:
    return any(name.endswith(f".{path}.bias") for name in weights for path in paths)


def _same(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in SAME_IN_CONFIG if hasattr(config, name)}
