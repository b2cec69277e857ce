"""Reopening of a DeciLM checkpoint from its files alone, with its fields read as vLLM's loader reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.model.edit import cast_parameters, replace_bias
from pruneengine.model.modeling_pruned import resize_layer


def reopen(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return the model of ``folder``: a Llama whose layers take their widths from ``block_configs``.

    Raises:
        RuntimeError: tensors are missing, unexpected, or of other shapes than the fields say.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    heads, hidden = config.num_attention_heads, config.hidden_size
    llama = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=hidden,
        num_hidden_layers=len(config.block_configs),
        # transformers' Llama wants a divisor of the hidden size here; the layers are resized below.
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=config.head_dim,
        intermediate_size=1,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=config.rope_parameters,
        tie_word_embeddings=config.tie_word_embeddings,
        attention_bias=True,
        mlp_bias=True,
    )
    model = LlamaForCausalLM(llama).eval()
    # Not model.to(dtype): frequencies of the positions stay float32.
    cast_parameters(model, dtype)
    for layer, block in zip(model.model.layers, config.block_configs, strict=True):
        kv_heads = heads // block.attention.n_heads_in_group
        resize_layer(layer, heads, kv_heads, block.ffn.intermediate_size)
        _drop_biases(layer, config)
    weights = {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model


def _drop_biases(layer: Any, config: Any) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    flags = {
        "qkv_bias": (attention.q_proj, attention.k_proj, attention.v_proj),
        "attention_bias": (attention.o_proj,),
        "mlp_bias": (mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    }
    for flag, linears in flags.items():
        if not getattr(config, flag):
            for linear in linears:
                replace_bias(linear, None)
