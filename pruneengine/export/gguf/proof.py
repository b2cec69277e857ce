"""Proof of a GGUF file: read back tensor by tensor, as a whole model, and by llama.cpp if it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pruneengine.checkpoint.reload_proof import ReloadError
from pruneengine.export.compare_logits import agree, logits
from pruneengine.export.gguf import llama_cpp
from pruneengine.export.gguf.tensors import INNER, OUTER, PAIRED
from pruneengine.export.model_shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HF_INNER = {theirs: ours for ours, theirs in INNER.items()}
HF_OUTER = {theirs: ours for ours, theirs in OUTER.items()}


def prove(
    file: Path, model: PreTrainedModel, shape: ModelShape, architecture: str, tokens: Tensor, expected: Tensor
) -> tuple[list[str], list[str]]:
    """Return the checks that the file passed and the checks that could not be made, one sentence each.

    ``model`` takes the file's weights, so that programs that read the file can be compared with it closely.

    Raises:
        ReloadError: the file holds other tensors, or gives other logits.
    """
    weights = read_back(file, shape, architecture)
    verified = [compare_tensors(weights, model)]
    model.load_state_dict(weights, strict=False)
    rounded = logits(model, tokens)
    # The tolerance covers the rounding of the weights. An F32 file of an F32 model changes nothing.
    verified.append(agree("the file's weights in this model", rounded, expected, torch.float16, slack=5))
    missing = []
    if reason := unreadable(model, shape, architecture):
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


def read_back(file: Path, shape: ModelShape, architecture: str) -> dict[str, Tensor]:
    """Read the file's tensors under transformers' names, with rows of queries and keys in transformers' order.

    Raises:
        ReloadError: the file's widths differ from the shape's.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    for key, counts in {
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "feed_forward_length": shape.channels,
    }.items():
        stored = reader.fields[f"{architecture}.{key}"].contents()
        if (stored if isinstance(stored, list) else [stored] * len(counts)) != list(counts):
            raise ReloadError(f"{file.name}: {key} reads back as {stored}")
    weights = {}
    for entry in reader.tensors:
        parts = entry.name.split(".")
        # Copied, because the memory-mapped file is closed with the reader.
        values = np.array(entry.data)
        if architecture in PAIRED and parts[-2] in ("attn_q", "attn_k"):
            halves = values.reshape(-1, shape.head_dim, *values.shape[1:])
            values = np.concatenate([halves[:, 0::2], halves[:, 1::2]], axis=1).reshape(values.shape)
        if entry.name == "rope_freqs.weight":
            continue
        inner = f"model.layers.{parts[1]}.{HF_INNER[parts[2]]}.{parts[3]}" if parts[0] == "blk" else ""
        weights[HF_OUTER.get(entry.name, inner)] = torch.from_numpy(values)
    return weights


def compare_tensors(weights: dict[str, Tensor], model: PreTrainedModel) -> str:
    """Return a sentence that the tensors equal the model's, rounded to the file's types.

    Raises:
        ReloadError: a tensor is missing, unexpected, or has other values than the model's.
    """
    state = model.state_dict()
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        state.pop("lm_head.weight")
    if odd := sorted(weights.keys() ^ state.keys()):
        raise ReloadError(f"the file and the checkpoint differ in {odd[0]}")
    for name, tensor in state.items():
        if not torch.equal(weights[name], tensor.to(weights[name].dtype)):
            raise ReloadError(f"{name} reads back with other values than the checkpoint's")
    return f"read back by gguf: all {len(state)} tensors equal the checkpoint's, rounded to the file's types"


def unreadable(model: PreTrainedModel, shape: ModelShape, architecture: str) -> str | None:
    """Return the reason why transformers' GGUF reader does not give this model, or None if it does."""
    if architecture == "deci":
        return "it has one width for all layers there"
    if shape.rope != "default":
        return "it reads no scaled positions from GGUF"
    if architecture == "llama" and shape.biases:
        return "it reads no biases of a llama from GGUF"
    if shape.hidden % shape.heads[0] and architecture != "qwen3":
        return "it wants the number of heads to divide the hidden size"
    if architecture == "qwen3" and shape.head_dim != type(model.config)().head_dim:
        return f"it takes heads of {type(model.config)().head_dim} for granted there"
    return None


def _by_transformers(file: Path, tokens: Tensor, expected: Tensor, dtype: torch.dtype) -> str:
    from pruneengine.checkpoint.load import load_weights_of_gguf

    return agree("opened by transformers", logits(load_weights_of_gguf(file, dtype), tokens), expected)
