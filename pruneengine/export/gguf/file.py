"""Format gguf: one file for llama.cpp, a "llama" if all layers have one width, a "deci" if they differ."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pruneengine.checkpoint.reload_proof import fixed_tokens
from pruneengine.common.files import check_space
from pruneengine.common.optional_imports import require_extra
from pruneengine.export.compare_logits import logits
from pruneengine.export.deci import window_remark
from pruneengine.export.gguf.proof import prove
from pruneengine.export.gguf.tensors import tensors
from pruneengine.export.gguf.tokenizer import tokenizer_keys
from pruneengine.export.model_shape import ModelShape
from pruneengine.export.outcome import Written
from pruneengine.export.runtimes import gguf_architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE_TYPE = {torch.float32: 0, torch.float16: 1}
check = gguf_architecture


def write(
    model: PreTrainedModel,
    tokenizer: Any,
    shape: ModelShape,
    folder: Path,
    *,
    name: str,
    dtype: torch.dtype,
    proof: bool,
) -> Written:
    """Write ``NAME-f16.gguf`` (or ``-f32``) into ``folder``."""
    architecture = gguf_architecture(shape)
    words, remarks = tokenizer_keys(tokenizer, model.config.vocab_size)
    keys = model_keys(model, shape, architecture) | words
    keys |= {"general.type": "model", "general.name": name, "general.file_type": FILE_TYPE[dtype]}
    file = folder / f"{name}-{'f16' if dtype == torch.float16 else 'f32'}.gguf"
    write_gguf(file, architecture, keys, model, shape, dtype)
    tokens = fixed_tokens(model.config.vocab_size, shape.window)
    verified: list[str] = []
    not_tried: list[str] = []
    if proof:
        verified, not_tried = prove(file, model, shape, architecture, tokens, logits(model, tokens))
    notes = [window_remark(shape.window)] if shape.window else []
    opens = f"llama-cli -m {shlex.quote(file.name)}   # llama.cpp, architecture {architecture}"
    return Written(opens, tuple(verified), (*remarks, *notes, *not_tried))


def model_keys(model: PreTrainedModel, shape: ModelShape, architecture: str) -> dict[str, Any]:
    """Return the keys that describe the model; head counts and MLP widths are arrays if layers differ."""
    config = model.config
    per_layer = architecture == "deci"
    values = {
        "block_count": len(shape.heads),
        "context_length": min(config.max_position_embeddings, shape.window or config.max_position_embeddings),
        "embedding_length": shape.hidden,
        "vocab_size": config.vocab_size,
        "feed_forward_length": list(shape.channels) if per_layer else shape.channels[0],
        "attention.head_count": list(shape.heads) if per_layer else shape.heads[0],
        "attention.head_count_kv": list(shape.kv_heads) if per_layer else shape.kv_heads[0],
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def write_gguf(
    file: Path, architecture: str, keys: dict[str, Any], model: PreTrainedModel, shape: ModelShape, dtype: torch.dtype
) -> None:
    """Write keys and tensors, converting one tensor at a time.

    Raises:
        OSError: the tensors do not fit on the disk.
        ValueError: as :func:`pruneengine.export.gguf.tensors.tensors`.
    """
    with require_extra("hf"):
        import gguf
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in keys.items():
        _add(writer, key, value)
    size = 0
    for name, tensor in tensors(model, shape, architecture, dtype):
        size += tensor.nbytes
        writer.add_tensor_info(name, tuple(tensor.shape), tensor.numpy().dtype, tensor.nbytes)
    check_space(file.parent, size)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in tensors(model, shape, architecture, dtype):
            writer.write_tensor_data(tensor.numpy())
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    # Before int, because a bool is an int.
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
