"""Tokenizer keys of a GGUF file, for byte-level BPE (GPT-2's kind) and SentencePiece's BPE (Llama 2's)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pruneengine.common.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Compared as whole expressions: those of tekken and o200k share pieces of these and split text differently.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {PIECES.replace("{digits}", "{1,3}"): "llama-bpe", PIECES.replace("{digits}", ""): "qwen2"}
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# First tokens of vocabularies whose splitting rule transformers loses when it reads them from GGUF.
KNOWN = {("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>"): "smollm"}


def tokenizer_keys(tokenizer: Any, vocab_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the keys ``tokenizer.*`` with their values, and remarks.

    Args:
        tokenizer: a tokenizer of transformers, or None for a file of token ids only.
        vocab_size: rows of the embedding; ids that the tokenizer lacks are marked unused.

    Raises:
        ValueError: another kind of tokenizer, an unknown splitting rule, or more tokens than the embedding has rows.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}, ("without a tokenizer: programs must be given token ids",)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"a {type(tokenizer).__name__} is not written: it runs in Python, without a tokenizer.json")
    raw = json.loads(backend.to_str())
    byte_level = "ByteLevel" in json.dumps([raw["pre_tokenizer"], raw["decoder"]])
    if raw["model"]["type"] != "BPE" or not (byte_level or raw["model"].get("byte_fallback")):
        raise InputError(f"a {raw['model']['type']} tokenizer that is no BPE down to bytes is not written")
    added = {token["id"]: token for token in raw["added_tokens"]}
    by_id = {id: text for text, id in raw["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    if max(by_id) >= vocab_size:
        raise InputError(f"the tokenizer has the token {max(by_id)}, the embedding {vocab_size} rows")
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    merges = [m.split(" ") if isinstance(m, str) else m for m in raw["model"]["merges"]]
    if byte_level:
        keys = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": splitting_rule(raw["pre_tokenizer"], tokens),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
            "tokenizer.ggml.add_space_prefix": False,
        }
    else:
        keys = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": merge_scores(tokens, merges),
            "tokenizer.ggml.add_space_prefix": _adds_space(raw),
        }
    unknown = None if byte_level else tokenizer.unk_token
    kinds = [_type(i, by_id, added, unknown, byte_level) for i in range(vocab_size)]
    keys |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_bos_token": tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id],
    }
    for ours, theirs in SPECIAL.items():
        if (id := getattr(tokenizer, f"{ours}_token_id")) is not None:
            keys[f"tokenizer.ggml.{theirs}_token_id"] = id
    if isinstance(template := getattr(tokenizer, "chat_template", None), str):
        keys["tokenizer.chat_template"] = template
    return keys, ()


def splitting_rule(pre_tokenizer: Mapping[str, Any] | None, tokens: list[str]) -> str:
    """Return llama.cpp's name for the rule that splits text before the merges.

    Raises:
        ValueError: the rule has no name here.
    """
    if name := next((n for start, n in KNOWN.items() if tuple(tokens[: len(start)]) == start), None):
        return name
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and (name := SPLITS.get(parts[0]["pattern"].get("Regex"))):
        return name
    raise InputError(f"llama.cpp's name for a tokenizer that splits text by {kinds} is not known here")


def merge_scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Return SentencePiece's scores, where only the order counts: the earlier a token's first merge, the higher."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _adds_space(raw: Mapping[str, Any]) -> bool:
    rules = json.dumps([raw["normalizer"], raw["pre_tokenizer"]])
    return '"Prepend"' in rules or '"prepend_scheme": "first"' in rules or '"prepend_scheme": "always"' in rules


def _type(
    id: int, by_id: Mapping[int, str], added: Mapping[int, Mapping[str, Any]], unknown: str | None, byte_level: bool
) -> int:
    if id not in by_id:
        return UNUSED
    if by_id[id] == unknown:
        return UNKNOWN
    if not byte_level and re.fullmatch("<0x[0-9A-F]{2}>", by_id[id]):
        return BYTE
    if id in added:
        return CONTROL if added[id]["special"] else USER_DEFINED
    return NORMAL
