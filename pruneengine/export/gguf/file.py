"""The format gguf: one file for llama.cpp, a "llama" where all layers have one width, a "deci" where they differ."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.checkpoint.reload_proof import fixed_tokens
from pruneengine.common.files import check_space
from pruneengine.common.optional_imports import require_extra
from pruneengine.export.compare_logits import logits
from pruneengine.export.deci import window_remark
from pruneengine.export.gguf.proof import prove
from pruneengine.export.gguf.tensors import tensors
from pruneengine.export.gguf.tokenizer import tokenizer_keys
from pruneengine.export.layout import ModelShape
from pruneengine.export.outcome import Written
from pruneengine.export.runtimes import gguf_architecture

FILE_TYPE = {torch.float32: 0, torch.float16: 1}
check = gguf_architecture


def write(
    model: nn.Module, tokenizer: Any, layout: ModelShape, folder: Path, *, name: str, dtype: torch.dtype, proof: bool
) -> Written:
    """Write ``NAME-f16.gguf`` (or ``-f32``) into ``folder``."""
    architecture = gguf_architecture(layout)
    words, remarks = tokenizer_keys(tokenizer, model.config.vocab_size)
    keys = model_keys(model, layout, architecture) | words
    keys |= {"general.type": "model", "general.name": name, "general.file_type": FILE_TYPE[dtype]}
    file = folder / f"{name}-{'f16' if dtype == torch.float16 else 'f32'}.gguf"
    write_gguf(file, architecture, keys, model, layout, dtype)
    tokens = fixed_tokens(model.config.vocab_size, layout.window)
    found = prove(file, model, layout, architecture, tokens, logits(model, tokens)) if proof else None
    notes = list(remarks)
    if layout.window:
        notes.append(window_remark(layout.window))
    verified, not_tried = found if found else ((), ())
    opens = f"llama-cli -m {shlex.quote(file.name)}   # llama.cpp, architecture {architecture}"
    return Written(opens, tuple(verified), (*notes, *not_tried))


def model_keys(model: nn.Module, layout: ModelShape, architecture: str) -> dict[str, Any]:
    """The keys that describe the model; head counts and MLP widths are arrays where layers differ."""
    config = model.config
    per_layer = architecture == "deci"
    values = {
        "block_count": len(layout.heads),
        "context_length": min(config.max_position_embeddings, layout.window or config.max_position_embeddings),
        "embedding_length": layout.hidden,
        "vocab_size": config.vocab_size,
        "feed_forward_length": list(layout.channels) if per_layer else layout.channels[0],
        "attention.head_count": list(layout.heads) if per_layer else layout.heads[0],
        "attention.head_count_kv": list(layout.kv_heads) if per_layer else layout.kv_heads[0],
        "attention.key_length": layout.head_dim,
        "attention.value_length": layout.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": layout.head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def write_gguf(
    file: Path, architecture: str, keys: dict[str, Any], model: nn.Module, layout: ModelShape, dtype: torch.dtype
) -> None:
    """Write keys and tensors; one tensor at a time is converted.

    Raises:
        OSError: they do not fit on the disk.
        ValueError: as :func:`pruneengine.export.gguf.tensors.tensors`.
    """
    with require_extra("hf"):
        import gguf
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    size = 0
    for name, tensor in tensors(model, layout, architecture, dtype):
        size += tensor.nbytes
        writer.add_tensor_info(name, tuple(tensor.shape), tensor.numpy().dtype, tensor.nbytes)
    check_space(file.parent, size)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in tensors(model, layout, architecture, dtype):
            writer.write_tensor_data(tensor.numpy())
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    # A bool is an int too.
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
