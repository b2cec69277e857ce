"""Tensors of a GGUF file: names, order of rows and types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruneengine.common.errors import InputError
from pruneengine.export.model_shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Architectures of llama.cpp that rotate neighbouring entries of a head together; the others rotate i with i + d/2.
PAIRED = ("llama", "deci")


def gguf_name(name: str) -> str:
    """Return the GGUF name of a tensor: ``model.layers.3.mlp.up_proj.weight`` -> ``blk.3.ffn_up.weight``.

    Raises:
        ValueError: these architectures have no such tensor.
    """
    if name in OUTER:
        return OUTER[name]
    parts = name.split(".")
    inner = ".".join(parts[3:-1])
    if parts[:2] != ["model", "layers"] or inner not in INNER:
        raise InputError(f"tensor {name} has no place in a GGUF file of this architecture")
    return f"blk.{parts[2]}.{INNER[inner]}.{parts[-1]}"


def pair_rows(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder rows of queries or keys so that rows which are rotated together become neighbours.

    Within each head of d rows, transformers rotates row i with row i + d/2, llama.cpp's "llama" row 2i with row 2i + 1.

    Args:
        rows: ``(heads * head_dim, ...)``, a weight or a bias.
        head_dim: d.
    """
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def tensors(
    model: PreTrainedModel, shape: ModelShape, architecture: str, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and contiguous tensor of everything in the file: matrices in ``dtype``, vectors in float32.

    Raises:
        ValueError: a weight is beyond the range of ``dtype``, or has no place in the file.
    """
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if shape.rope != "default":
        yield "rope_freqs.weight", rope_factors(model, shape)
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        target = gguf_name(name)
        if architecture in PAIRED and target.split(".")[-2] in ("attn_q", "attn_k"):
            tensor = pair_rows(tensor, shape.head_dim)
        cast = tensor.to(dtype if tensor.dim() > 1 else torch.float32).contiguous()
        if not torch.isfinite(cast).all():
            raise InputError(f"{name} has entries beyond {dtype}; export with dtype float32")
        yield target, cast


def rope_factors(model: PreTrainedModel, shape: ModelShape) -> Tensor:
    """Return the divisors of llama.cpp's rotary frequencies, float32 ``(head_dim / 2,)``.

    Raises:
        ValueError: the positions also scale the logits of attention, which the divisors cannot express.
    """
    rotary = model.model.rotary_emb
    if rotary.attention_scaling != 1:
        raise InputError(f"rotary positions that scale attention by {rotary.attention_scaling} are not written")
    steps = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    plain = 1.0 / model.config.rope_parameters["rope_theta"] ** steps
    return plain / rotary.inv_freq.float().cpu()
