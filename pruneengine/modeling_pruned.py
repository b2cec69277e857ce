"""Causal language models of transformers whose decoder layers differ in width or have more biases.

This file travels inside a checkpoint and needs transformers only. ``config.json`` names a class below in ``auto_map``.
What a layer is, where it is not what the config says, is given by any of:

- ``pruneengine_widths``: one ``{"num_attention_heads", "num_key_value_heads", "intermediate_size"}`` per decoder layer,
  for layers of Llama's layout. The same names in the config itself give at least the widest layer's numbers.
- ``pruneengine_shapes``: one ``{"linears": {path: [rows, columns]}, "counts": {path: number}}`` per decoder layer, for
  any other layout; ``counts`` are attributes that the layer reads beside its weights.
- ``pruneengine_biases``: linears of a layer, e.g. ``"mlp.down_proj"``, that have a bias in every layer.
"""

import copy

from torch import nn
from transformers import (
    BloomForCausalLM,
    FalconForCausalLM,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    GPTNeoXForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MistralForCausalLM,
    OPTForCausalLM,
    Phi3ForCausalLM,
    PhiForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SmolLM3ForCausalLM,
)


def resized(linear: nn.Linear, out_features: int, in_features: int) -> nn.Linear:
    """A linear layer of the given size with the bias setting, device and dtype of ``linear``."""
    weight = linear.weight
    if weight.shape == (out_features, in_features):
        return linear
    return nn.Linear(in_features, out_features, linear.bias is not None, device=weight.device, dtype=weight.dtype)


def resize_layer(layer: nn.Module, num_attention_heads: int, num_key_value_heads: int, intermediate_size: int) -> None:
    """Give one decoder layer its own numbers of heads, key-value heads and MLP channels."""
    attention, mlp = layer.self_attn, layer.mlp
    hidden = attention.q_proj.in_features
    query, key_value = num_attention_heads * attention.head_dim, num_key_value_heads * attention.head_dim
    attention.q_proj = resized(attention.q_proj, query, hidden)
    attention.k_proj = resized(attention.k_proj, key_value, hidden)
    attention.v_proj = resized(attention.v_proj, key_value, hidden)
    attention.o_proj = resized(attention.o_proj, hidden, query)
    attention.num_key_value_groups = num_attention_heads // num_key_value_heads
    mlp.gate_proj = resized(mlp.gate_proj, intermediate_size, hidden)
    mlp.up_proj = resized(mlp.up_proj, intermediate_size, hidden)
    mlp.down_proj = resized(mlp.down_proj, hidden, intermediate_size)
    mlp.intermediate_size = intermediate_size


def add_bias(layer: nn.Module, path: str) -> None:
    """Give the linear at ``path`` of a decoder layer a bias."""
    linear = layer.get_submodule(path)
    weight = linear.weight
    biased = nn.Linear(linear.in_features, linear.out_features, True, device=weight.device, dtype=weight.dtype)
    layer.set_submodule(path, biased)


def reshape_layer(layer: nn.Module, linears: dict, counts: dict) -> None:
    """Give the linears of one decoder layer their own shapes, and the layer the numbers that go with them."""
    for path, (rows, columns) in linears.items():
        layer.set_submodule(path, resized(layer.get_submodule(path), rows, columns))
    for path, value in counts.items():
        owner, (*parents, name) = layer, path.split(".")
        for parent in parents:
            owner, holder = getattr(owner, parent), owner
            if not isinstance(owner, nn.Module):
                # A config that all layers share.
                owner = copy.copy(owner)
                setattr(holder, parent, owner)
        setattr(owner, name, value)


class PerLayer:
    """Mixin in front of a causal language model: prepares every layer before the weights are loaded."""

    layers_path = "model.layers"

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        layers = self.get_submodule(self.layers_path)
        config = config.get_text_config()
        for name, prepare in (("pruneengine_widths", resize_layer), ("pruneengine_shapes", reshape_layer)):
            entries = getattr(config, name, None) or []
            if entries and len(entries) != len(layers):
                raise ValueError(f"{name} has {len(entries)} entries for {len(layers)} layers")
            for layer, entry in zip(layers, entries):  # noqa: B905
                prepare(layer, **entry)
        for layer in layers:
            for path in getattr(config, "pruneengine_biases", None) or ():
                add_bias(layer, path)


class PrunedLlamaForCausalLM(PerLayer, LlamaForCausalLM):
    pass


class PrunedGraniteForCausalLM(PerLayer, GraniteForCausalLM):
    pass


class PrunedSmolLM3ForCausalLM(PerLayer, SmolLM3ForCausalLM):
    pass


class PrunedMistralForCausalLM(PerLayer, MistralForCausalLM):
    pass


class PrunedQwen2ForCausalLM(PerLayer, Qwen2ForCausalLM):
    pass


class PrunedQwen3ForCausalLM(PerLayer, Qwen3ForCausalLM):
    pass


class PrunedGemmaForCausalLM(PerLayer, GemmaForCausalLM):
    pass


class PrunedGemma2ForCausalLM(PerLayer, Gemma2ForCausalLM):
    pass


class PrunedGemma3ForCausalLM(PerLayer, Gemma3ForCausalLM):
    pass


class PrunedPhiForCausalLM(PerLayer, PhiForCausalLM):
    pass


class PrunedPhi3ForCausalLM(PerLayer, Phi3ForCausalLM):
    pass


class PrunedOPTForCausalLM(PerLayer, OPTForCausalLM):
    layers_path = "model.decoder.layers"


class PrunedGPTNeoXForCausalLM(PerLayer, GPTNeoXForCausalLM):
    layers_path = "gpt_neox.layers"


class PrunedBloomForCausalLM(PerLayer, BloomForCausalLM):
    layers_path = "transformer.h"


class PrunedFalconForCausalLM(PerLayer, FalconForCausalLM):
    layers_path = "transformer.h"


class PrunedLlavaForConditionalGeneration(PerLayer, LlavaForConditionalGeneration):
    layers_path = "model.language_model.layers"
