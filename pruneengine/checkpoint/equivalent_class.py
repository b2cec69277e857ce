"""A model as its twin: another class of transformers that computes the same, with the linears of a Llama."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.model import Family, Member, Structure, find_groups
from pruneengine.model.config_sync import layer_widths, sync_config

LLAMA = Family(())
SAME_IN_CONFIG = (
    "vocab_size", "hidden_size", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    "sliding_window", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def as_written(model: nn.Module) -> nn.Module:
    """The model that a checkpoint of ``model`` holds: itself, or its twin where transformers has no class for it.

    Linears that the twin has in parts are copied; every other weight is shared, so neither may change while both are
    in use.

    Raises:
        ValueError: as :func:`pruneengine.model.find_groups`.
    """
    structure = find_groups(model)
    return model if structure.family.own_class else _twin(model, structure)


def split_fused_linears(model: nn.Module) -> nn.Module:
    """The model, or its twin if it has one; weights and errors as with :func:`as_written`."""
    structure = find_groups(model)
    return _twin(model, structure) if structure.family.equivalent else model


def _twin(model: nn.Module, structure: Structure) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    from pruneengine.model.modeling_pruned import add_bias, resize_layer

    weights = dict(_weights(model, structure))
    config = AutoConfig.for_model(
        structure.family.equivalent,
        # Layers get their own widths below; a number of heads that does not divide the hidden size is refused here.
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=1,
        head_dim=structure.head_dim,
        num_hidden_layers=structure.num_layers,
        attention_bias=_any_bias(weights, LLAMA.query, LLAMA.attention_out),
        mlp_bias=_any_bias(weights, *LLAMA.mlp_in, LLAMA.mlp_out),
        **_same(model.config),
    )
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
        for layer, widths in zip(twin.get_submodule(LLAMA.layers), layer_widths(structure), strict=True):
            resize_layer(layer, **widths)
            # Where the twin's config has no flag for it.
            for path in LLAMA.linears:
                if layer.get_submodule(path).bias is None and _any_bias(weights, path):
                    add_bias(layer, path)
    for name, parameter in twin.named_parameters(remove_duplicate=False):
        if name.endswith(".bias") and name not in weights:
            weights[name] = torch.zeros(parameter.shape, dtype=model.dtype, device=model.device)
    twin.load_state_dict(weights, strict=True, assign=True)
    twin.tie_weights()
    # Its frequencies are no weights, and still on the meta device.
    with model.device:
        twin.model.rotary_emb = type(twin.model.rotary_emb)(config)
    twin.generation_config = model.generation_config
    sync_config(twin)
    return twin.requires_grad_(False).eval()


def written_linears(structure: Structure) -> dict[str, tuple[str, ...]]:
    """The linears of a checkpoint that hold a linear of the model in parts, by its path; empty where none is split."""
    if structure.family.own_class:
        return {}
    return {module: tuple(name for name, _ in parts) for module, parts in _parts(structure).items()}


def _parts(structure: Structure) -> dict[str, list[tuple[str, Member]]]:
    """For every linear that members share, the twin's linear for each of them."""
    parts: dict[str, list[tuple[str, Member]]] = {}
    for group in structure.groups:
        names = (LLAMA.query, LLAMA.key, LLAMA.value) if group.kind == "heads" else LLAMA.mlp_in
        shared = [member for member in group.members if member.starts is not None]
        # Stacked: what starts first is queries, or gate.
        for member, name in zip(sorted(shared, key=lambda m: m.starts.start), names, strict=False):
            parts.setdefault(member.module, []).append((f"{structure.layer_path(group.layer)}.{name}", member))
    return parts


def _weights(model: nn.Module, structure: Structure) -> Iterator[tuple[str, Tensor]]:
    """The model's weights by the twin's names."""
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
