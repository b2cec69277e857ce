"""Tiny random models, one per family: name -> (model type, config). tests/model/test_families.py runs on each."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoConfig

from pruneengine.model import auto_class
from pruneengine.model.experts import unfuse_experts
from tests.helpers import modeling_baichuan

_COMMON = {"vocab_size": 97, "hidden_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = _COMMON | {
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "max_position_embeddings": 64,
}
_MHA = _COMMON | {
    "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_FALCON = _COMMON | {"num_hidden_layers": 3, "num_attention_heads": 8, "ffn_hidden_size": 80}
_CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16,
}  # fmt: skip

_QWEN2_MOE = {
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _LLAMA),
    "granite": ("granite", _LLAMA | {"logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "smollm3": ("smollm3", _LLAMA),
    "mistral": ("mistral", _LLAMA),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA),
    "gemma": ("gemma", _LLAMA),
    "gemma2": ("gemma2", _LLAMA | _SLIDING | {"query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", _LLAMA | _SLIDING | {"query_pre_attn_scalar": 16}),
    "llava": ("llava", {"text_config": _LLAMA | {"model_type": "llama"}, "vision_config": _CLIP, "image_token_id": 96}),
    "baichuan": ("baichuan", _MHA),
    "mixtral": ("mixtral", _LLAMA | {"intermediate_size": 40, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", _LLAMA | _QWEN2_MOE),
    "qwen3_moe": ("qwen3_moe", _LLAMA | _QWEN2_MOE | {"norm_topk_prob": True}),
    "phi": ("phi", _MHA),
    "phi3": ("phi3", _LLAMA),
    "opt": ("opt", _MHA | {"ffn_dim": 72, "word_embed_proj_dim": 48}),
    "gpt_neox": ("gpt_neox", _MHA),
    "bloom": ("bloom", _COMMON | {"n_layer": 3, "n_head": 4}),
    "falcon": ("falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 4}),
    "falcon-multi-query": ("falcon", _FALCON | {"multi_query": True, "new_decoder_architecture": False}),
    "falcon-alibi": ("falcon", _FALCON | {"multi_query": False, "alibi": True, "parallel_attn": False, "bias": True}),
}

# transformers has no class for it; what it has comes with the checkpoint.
modeling_baichuan.register()


def family_model(name: str, seed: int = 0, **changes: object) -> torch.nn.Module:
    """Return a model whose biases and norms are not at their initial zeros and ones, in evaluation mode."""
    model_type, options = FAMILIES[name]
    torch.manual_seed(seed)
    model = getattr(transformers, auto_class(model_type)).from_config(
        AutoConfig.for_model(model_type, **options | changes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.1))
    return unfuse_experts(model).eval()
