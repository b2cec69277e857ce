"""Causal language models whose decoder layers differ in width or have more biases, for Llama, Mistral, Qwen2 and Qwen3.

This file travels inside a checkpoint and needs transformers only. ``config.json`` names a class below in ``auto_map``
and gives the widths in ``pruneengine_widths``: one ``{"num_attention_heads", "num_key_value_heads",
"intermediate_size"}`` per decoder layer. The same names in the config itself give at least the widest layer's numbers.
``pruneengine_biases`` names linears of a layer, e.g. ``"mlp.down_proj"``, that have a bias in every layer. Either may
be absent.
"""

from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM


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


class PerLayerWidths:
    """Mixin in front of a causal language model: prepares every layer before the weights are loaded."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        widths = getattr(config, "pruneengine_widths", None) or []
        if widths and len(widths) != len(self.model.layers):
            raise ValueError(f"pruneengine_widths has {len(widths)} entries for {len(self.model.layers)} layers")
        for layer, layer_widths in zip(self.model.layers, widths):  # noqa: B905
            resize_layer(layer, **layer_widths)
        for layer in self.model.layers:
            for path in getattr(config, "pruneengine_biases", None) or ():
                add_bias(layer, path)


class PrunedLlamaForCausalLM(PerLayerWidths, LlamaForCausalLM):
    pass


class PrunedMistralForCausalLM(PerLayerWidths, MistralForCausalLM):
    pass


class PrunedQwen2ForCausalLM(PerLayerWidths, Qwen2ForCausalLM):
    pass


class PrunedQwen3ForCausalLM(PerLayerWidths, Qwen3ForCausalLM):
    pass
