"""Tiny checkpoints with tokenizers, to export, and readers of what an export wrote."""

from __future__ import annotations

import pytest

from pruneengine.checkpoint.write import save
from tests.checkpoint.test_write import EQUAL, UNEQUAL, prune_by_hand
from tests.helpers.tiny import tiny_model

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

VARIANTS = ["llama-gqa-tied", "llama-mha-untied", "llama-biases", "mistral-sliding", "qwen2-biases"]
WIDTHS = {"uniform": EQUAL, "per-layer": UNEQUAL}


def byte_level_tokenizer():
    """Return a tokenizer of GPT-2's kind with two merges and two special tokens, smaller than the tiny vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:90]
    vocab = {text: id for id, text in enumerate(["<unk>", "<s>", "</s>", *letters, "ab", "abc"])}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b"), ("ab", "c")]))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def sentencepiece_tokenizer():
    """Return a tokenizer of Llama 2's kind: a mark for spaces, merges, bytes for what is left."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "ab", "abc", "▁abc", *"▁abcd"]
    merges = [("a", "b"), ("ab", "c"), ("▁", "abc")]
    model = tokenizers.models.BPE(
        {text: id for id, text in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    raw = tokenizers.Tokenizer(model)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def checkpoint(tmp_path, variant="llama-gqa-tied", widths=EQUAL, **changes):
    model = prune_by_hand(tiny_model(variant, **changes), widths)
    return save(model, byte_level_tokenizer(), tmp_path / "ours", proof=False).path


def reader_of(folder):
    (file,) = folder.glob("*.gguf")
    return gguf.GGUFReader(file)


def key(reader, name):
    return reader.fields[name].contents()
