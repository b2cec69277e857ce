"""A stand-in for Baichuan-7B's remote code: its module names and what its layers read, written anew and small.

One linear, ``W_pack``, gives queries, keys and values, one behind the other; a layer returns a tuple; attention keeps
its number of heads and the rows of all heads, called ``hidden_size``, beside its weights. Like remote code this file
needs torch and transformers only.
"""

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class BaichuanConfig(PretrainedConfig):
    model_type = "baichuan"

    def __init__(
        self,
        vocab_size=64000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        hidden_act="silu",
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        super().__init__(**kwargs)


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class RotaryEmbedding(nn.Module):
    def __init__(self, head_dim, base=10000.0):
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def forward(self, x, positions):
        """Rotate heads ``(B, heads, T, d)``, each by its position: entry i with entry i + d/2."""
        half = torch.arange(self.head_dim // 2, device=x.device)
        angles = positions[:, None, :, None] / self.base ** (2 * half / self.head_dim)
        first, second = x.chunk(2, -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim, rest = divmod(self.hidden_size, self.num_heads)
        if rest:
            raise ValueError(f"{self.num_heads} heads do not divide a hidden size of {self.hidden_size}")
        self.W_pack = nn.Linear(self.hidden_size, 3 * self.hidden_size, bias=False)
        self.o_proj = nn.Linear(self.hidden_size, self.hidden_size, bias=False)
        self.rotary_emb = RotaryEmbedding(self.head_dim)

    def forward(self, x, attention_mask, position_ids, past_key_values=None):
        packed = self.W_pack(x).unflatten(-1, (3, self.hidden_size))
        query, key, value = (
            packed[:, :, i].unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for i in range(3)
        )
        query, key = self.rotary_emb(query, position_ids), self.rotary_emb(key, position_ids)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        weights = (query @ key.transpose(2, 3) / self.head_dim**0.5 + attention_mask).softmax(-1)
        return self.o_proj((weights @ value).transpose(1, 2).reshape(*x.shape[:2], self.hidden_size))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, attention_mask=None, position_ids=None, past_key_values=None):
        attended = self.self_attn(self.input_layernorm(hidden_states), attention_mask, position_ids, past_key_values)
        hidden_states = hidden_states + attended
        return (hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)),)


class BaichuanPreTrainedModel(PreTrainedModel):
    config_class = BaichuanConfig
    base_model_prefix = "model"


class BaichuanModel(BaichuanPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, **_):
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        hidden_states = self.embed_tokens(input_ids)
        length = input_ids.shape[1]
        positions = torch.arange(seen, seen + length, device=input_ids.device)
        later = torch.arange(seen + length, device=input_ids.device) > positions[:, None]
        mask = later[None, None].to(hidden_states.dtype) * torch.finfo(hidden_states.dtype).min
        if attention_mask is not None:
            hidden = (attention_mask == 0)[:, None, None, :].expand(-1, -1, length, -1)
            mask = mask.masked_fill(hidden, torch.finfo(hidden_states.dtype).min)
        for layer in self.layers:
            (hidden_states, *_rest) = layer(
                hidden_states, attention_mask=mask, position_ids=positions[None], past_key_values=past_key_values
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, past_key_values=None, labels=None, use_cache=None, **_):
        out = self.model(input_ids, attention_mask, past_key_values, use_cache)
        logits = self.lm_head(out.last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)


def register() -> None:
    """Register the model with transformers' own classes, as a folder with remote code would."""
    AutoConfig.register(BaichuanConfig.model_type, BaichuanConfig, exist_ok=True)
    AutoModelForCausalLM.register(BaichuanConfig, BaichuanForCausalLM, exist_ok=True)
