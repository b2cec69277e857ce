"""Causal language models of transformers whose decoder layers differ in width or have more biases.

This file travels inside a checkpoint and needs transformers only. ``config.json`` names a class below in ``auto_map``.
What a layer is, where it is not what the config says, is given by any of:

- ``pruneengine_widths``: one ``{"num_attention_heads", "num_key_value_heads", "intermediate_size"}`` per decoder layer,
  for layers of Llama's layout. The same names in the config itself give at least the widest layer's numbers.
- ``pruneengine_shapes``: one ``{"linears": {path: [rows, columns]}, "counts": {path: number}}`` per decoder layer, for
  any other layout; ``counts`` are attributes that the layer reads beside its weights. Mixtures of experts have
  ``"experts": number`` besides.
- ``pruneengine_biases``: linears of a layer, e.g. ``"mlp.down_proj"``, that have a bias in every layer that has them.
"""

import copy

import torch
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
    MixtralForCausalLM,
    OPTForCausalLM,
    Phi3ForCausalLM,
    PhiForCausalLM,
    Qwen2ForCausalLM,
    Qwen2MoeForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
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


class Expert(nn.Module):
    """One expert as an MLP of its own, from its rows of a layer's fused parameters."""

    def __init__(self, gate_up, down, act_fn):
        super().__init__()
        gate, up = gate_up.detach().chunk(2)
        self.gate_proj, self.up_proj, self.down_proj = map(linear_of, (gate, up, down.detach()))
        self.act_fn = act_fn

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def linear_of(weight: torch.Tensor) -> nn.Linear:
    """A linear layer without bias that has a copy of this weight."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone())
    return linear


class MixtureOfExperts(nn.Module):
    """What a block with fused experts computes, by experts that each have linears of their own.

    Every expert is run once, on its tokens sample by sample: ``[b, longest, H]``, zeros behind the last. One that no
    token chose runs on a single zero, so that whoever listens to its linears hears of it; not where a text grows
    token by token, and most experts idle.
    """

    def __init__(self, fused):
        super().__init__()
        experts = fused.experts
        self.gate = fused.gate
        pairs = zip(experts.gate_up_proj, experts.down_proj)  # noqa: B905
        self.expert = nn.ModuleList(Expert(gate_up, down, experts.act_fn) for gate_up, down in pairs)
        self.expert.requires_grad_(experts.gate_up_proj.requires_grad)
        self.shared_expert = getattr(fused, "shared_expert", None)
        self.shared_expert_gate = getattr(fused, "shared_expert_gate", None)
        self.jitter_noise = getattr(fused, "jitter_noise", 0)

    def forward(self, hidden_states):
        if self.training and self.jitter_noise > 0:
            noise = torch.empty_like(hidden_states).uniform_(1 - self.jitter_noise, 1 + self.jitter_noise)
            hidden_states = hidden_states * noise
        samples, length, hidden = hidden_states.shape
        _, weights, chosen = self.gate(hidden_states.reshape(-1, hidden))
        weights, chosen = weights.view(samples, length, -1), chosen.view(samples, length, -1)
        out = torch.zeros_like(hidden_states)
        # [samples, length, experts, chosen a token]
        picked = chosen[:, :, None] == torch.arange(len(self.expert), device=chosen.device)[:, None]
        routed = picked.any(-1)
        for index, longest in enumerate(routed.sum(1).amax(0).tolist()):
            if not longest and length == 1:
                continue
            # Stable: a sample's tokens come first, in their order.
            order = routed[..., index].int().argsort(dim=1, descending=True, stable=True)[:, : max(1, longest)]
            idle = ~routed[..., index].gather(1, order)[..., None]
            places = order[..., None].expand(-1, -1, hidden)
            given = self.expert[index](hidden_states.gather(1, places).masked_fill(idle, 0))
            share = (weights * picked[:, :, index]).sum(-1).gather(1, order)[..., None]
            out = out.scatter_add(1, places, (given * share).masked_fill(idle, 0).to(out.dtype))
        if self.shared_expert is not None:
            out = out + torch.sigmoid(self.shared_expert_gate(hidden_states)) * self.shared_expert(hidden_states)
        return out


def unfuse(layer: nn.Module) -> None:
    """Give the experts of a decoder layer linears of their own; once."""
    if hasattr(layer.mlp, "experts"):
        layer.mlp = MixtureOfExperts(layer.mlp).train(layer.mlp.training)


def keep_experts(layer: nn.Module, kept) -> None:
    """Leave these experts (ascending indices) of a decoder layer, and their rows of the router."""
    block = layer.mlp
    block.expert = nn.ModuleList(block.expert[index] for index in kept)
    weight = block.gate.weight
    block.gate.weight = nn.Parameter(weight.detach()[list(kept)], requires_grad=weight.requires_grad)
    block.gate.num_experts = len(block.expert)


def add_bias(layer: nn.Module, path: str) -> None:
    """Give the linear at ``path`` of a decoder layer a bias; nothing where an expert has gone with its linears."""
    parent, _, index = path.rpartition(".")[0].rpartition(".")
    if index.isdecimal() and int(index) >= len(layer.get_submodule(parent)):
        return
    linear = layer.get_submodule(path)
    weight = linear.weight
    biased = nn.Linear(linear.in_features, linear.out_features, True, device=weight.device, dtype=weight.dtype)
    layer.set_submodule(path, biased)


def reshape_layer(layer: nn.Module, linears: dict, counts: dict, experts: int | None = None) -> None:
    """Give the linears of one decoder layer their own shapes, and the layer the numbers that go with them."""
    if experts is not None:
        keep_experts(layer, range(experts))
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
    has_experts = False

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        layers = self.get_submodule(self.layers_path)
        config = config.get_text_config()
        if self.has_experts:
            for layer in layers:
                unfuse(layer)
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


class PrunedMixtralForCausalLM(PerLayer, MixtralForCausalLM):
    has_experts = True


class PrunedQwen2ForCausalLM(PerLayer, Qwen2ForCausalLM):
    pass


class PrunedQwen2MoeForCausalLM(PerLayer, Qwen2MoeForCausalLM):
    has_experts = True


class PrunedQwen3ForCausalLM(PerLayer, Qwen3ForCausalLM):
    pass


class PrunedQwen3MoeForCausalLM(PerLayer, Qwen3MoeForCausalLM):
    has_experts = True


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
