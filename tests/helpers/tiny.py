"""Tiny random models of every supported layout, and the tokens to run through them."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# Odd on purpose: head_dim is not hidden/heads, and no size is a power of two.
_BASE = {
    "vocab_size": 97,
    "hidden_size": 60,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
VARIANTS = {
    "llama-gqa-tied": ("llama", {}),
    "llama-mha-untied": ("llama", {"num_key_value_heads": 6, "tie_word_embeddings": False}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral-sliding": ("mistral", {"sliding_window": 8}),
    "qwen2-biases": ("qwen2", {"head_dim": 12}),
    "qwen3-norms": ("qwen3", {}),
}


def tiny_model(variant: str = "llama-gqa-tied", seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """Return a random causal language model whose biases and norms are not at their initial zeros and ones."""
    model_type, options = VARIANTS[variant]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(_BASE | options | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that the loss, and so every gradient, depends visibly on each weight.
            spread = torch.randn_like(parameter) * (0.2 if parameter.dim() == 2 else 0.1)
            parameter.copy_(spread + (1.0 if "norm" in name else 0.0))
    return model.to(dtype).eval()


def tiny_tokens(samples: int = 5, length: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (samples, length), generator=torch.Generator().manual_seed(seed))


def logits(model, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits
