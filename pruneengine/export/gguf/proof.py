"""A GGUF file read back: tensor by tensor, as a whole model, and by llama.cpp where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pruneengine.checkpoint.reload_proof import ReloadError
from pruneengine.export.compare_logits import agree, logits
from pruneengine.export.gguf import llama_cpp
from pruneengine.export.gguf.tensors import INNER, OUTER, PAIRED
from pruneengine.export.layout import ModelShape

HF_INNER = {theirs: ours for ours, theirs in INNER.items()}
HF_OUTER = {theirs: ours for ours, theirs in OUTER.items()}


def prove(
    file: Path, model: nn.Module, layout: ModelShape, architecture: str, tokens: Tensor, expected: Tensor
) -> tuple[list[str], list[str]]:
    """What was verified, and what could not be.

    ``model`` takes the file's weights, so that what reads the file can be held against it closely.

    Raises:
        ReloadError: the file holds other tensors, or gives other logits.
    """
    weights = read_back(file, layout, architecture)
    verified = [compare_tensors(weights, model)]
    model.load_state_dict(weights, strict=False)
    rounded = logits(model, tokens)
    # The weights' rounding, not the arithmetic's: an F32 file of an F32 model changes nothing.
    verified.append(agree("the file's weights in this model", rounded, expected, torch.float16, slack=5))
    missing = []
    if reason := unreadable(model, layout, architecture):
        missing.append(f"not opened by transformers: {reason}")
    else:
        verified.append(_by_transformers(file, tokens, rounded, model.dtype))
    if reason := llama_cpp.missing():
        missing.append(f"not run in llama.cpp: {reason}")
    else:
        actual = llama_cpp.logits(file, tokens)
        what = f"run in llama.cpp (llama-cpp-python {llama_cpp.version()})"
        # llama.cpp rounds activations to half precision before it multiplies.
        verified.append(agree(what, actual, rounded, torch.float16, slack=5))
    return verified, missing


def read_back(file: Path, layout: ModelShape, architecture: str) -> dict[str, Tensor]:
    """The file's tensors under transformers' names, rows of queries and keys in transformers' order.

    Raises:
        ReloadError: the file's widths are not the layout's.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    for key, counts in {
        "attention.head_count": layout.heads,
        "attention.head_count_kv": layout.kv_heads,
        "feed_forward_length": layout.channels,
    }.items():
        found = reader.fields[f"{architecture}.{key}"].contents()
        if (found if isinstance(found, list) else [found] * len(counts)) != list(counts):
            raise ReloadError(f"{file.name}: {key} reads back as {found}")
    weights = {}
    for entry in reader.tensors:
        parts = entry.name.split(".")
        # The file is memory-mapped and goes away with the reader.
        values = np.array(entry.data)
        if architecture in PAIRED and parts[-2] in ("attn_q", "attn_k"):
            halves = values.reshape(-1, layout.head_dim, *values.shape[1:])
            values = np.concatenate([halves[:, 0::2], halves[:, 1::2]], axis=1).reshape(values.shape)
        if entry.name == "rope_freqs.weight":
            continue
        inner = f"model.layers.{parts[1]}.{HF_INNER[parts[2]]}.{parts[3]}" if parts[0] == "blk" else ""
        weights[HF_OUTER.get(entry.name, inner)] = torch.from_numpy(values)
    return weights


def compare_tensors(weights: dict[str, Tensor], model: nn.Module) -> str:
    """A sentence; ReloadError if a tensor is missing, too much, or not the model's, rounded to the file's type."""
    state = model.state_dict()
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        state.pop("lm_head.weight")
    if odd := sorted(weights.keys() ^ state.keys()):
        raise ReloadError(f"the file and the checkpoint differ in {odd[0]}")
    for name, tensor in state.items():
        if not torch.equal(weights[name], tensor.to(weights[name].dtype)):
            raise ReloadError(f"{name} reads back with other values than the checkpoint's")
    return f"read back by gguf: all {len(state)} tensors equal the checkpoint's, rounded to the file's types"


def unreadable(model: nn.Module, layout: ModelShape, architecture: str) -> str | None:
    """Why transformers' GGUF reader does not give this model, or None if it does."""
    if architecture == "deci":
        return "it has one width for all layers there"
    if layout.rope != "default":
        return "it reads no scaled positions from GGUF"
    if architecture == "llama" and layout.biases:
        return "it reads no biases of a llama from GGUF"
    if layout.hidden % layout.heads[0] and architecture != "qwen3":
        return "it wants the number of heads to divide the hidden size"
    if architecture == "qwen3" and layout.head_dim != type(model.config)().head_dim:
        return f"it takes heads of {type(model.config)().head_dim} for granted there"
    return None


def _by_transformers(file: Path, tokens: Tensor, expected: Tensor, dtype: torch.dtype) -> str:
    from pruneengine.checkpoint.load import load_weights_of_gguf

    return agree("opened by transformers", logits(load_weights_of_gguf(file, dtype), tokens), expected)
