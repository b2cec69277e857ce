"""Format deci: DeciLM's ``block_configs``, which vLLM's loader of NVIDIA's Nemotron-NAS models reads.

That loader takes one number of query heads for all layers, ``num_attention_heads``. For each layer it takes the number
of query heads per key-value head and the number of MLP channels. Query heads that a layer lacks are written as zeros.
Key-value heads are padded with zeros too if their number does not divide the query heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pruneengine.checkpoint.config_json import checkpoint_config
from pruneengine.checkpoint.reload_proof import fixed_tokens
from pruneengine.export.compare_logits import agree, logits
from pruneengine.export.deci_proof import reopen
from pruneengine.export.model_shape import ModelShape
from pruneengine.export.outcome import Written
from pruneengine.export.pad import write_folder
from pruneengine.export.padding import pad_model
from pruneengine.export.runtimes import check_deci
from pruneengine.model import Family
from pruneengine.model.edit import add_zero_bias

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_CODE = Path(__file__).with_name("configuration_decilm.py")
NOT_RUN = (
    "vLLM itself was not run: the fields are the ones that its nemotron_nas.py reads (a release that knows "
    "ffn.intermediate_size), checked by a model built from them as it does"
)
check = check_deci


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
    """Bring ``model`` into DeciLM's shape in place and write it; only other formats read ``name`` and ``dtype``."""
    tokens = fixed_tokens(model.config.vocab_size, shape.window)
    expected = logits(model, tokens) if proof else None
    before = sum(parameter.numel() for parameter in model.parameters())
    heads, kv_heads = deci_heads(shape)
    # Before padding: layers that differ in query heads for a key-value head are no structure of ours.
    config = deci_config(checkpoint_config(model), shape, heads, kv_heads)
    pad_model(model, [heads] * len(kv_heads), kv_heads, shape.channels)
    _complete_biases(model, shape)
    after = sum(parameter.numel() for parameter in model.parameters())
    write_folder(model, tokenizer, folder, config)
    (folder / CONFIG_CODE.name).write_text(CONFIG_CODE.read_text(encoding="utf-8"), encoding="utf-8")
    verified = []
    if expected is not None:
        what = "opened from its block_configs by transformers' layers"
        verified.append(agree(what, logits(reopen(folder, model.dtype), tokens), expected))
    cost = f"{before:,} => {after:,} parameters ({after / before - 1:+.1%})"
    remarks = [NOT_RUN, f"{cost}: every layer has the same number of query heads, zeros where there were fewer"]
    if tuple(kv_heads) != shape.kv_heads:
        odd = next(i for i, n in enumerate(kv_heads) if n != shape.kv_heads[i])
        remarks.append(
            f"key-value heads must divide the {heads} query heads: "
            f"layer {odd}, for one, has {kv_heads[odd]} instead of {shape.kv_heads[odd]}"
        )
    if shape.window:
        remarks.append(window_remark(shape.window))
    return Written("vllm serve PATH --trust-remote-code", tuple(verified), tuple(remarks))


def window_remark(window: int) -> str:
    """Return the remark on a sliding window of the given number of tokens, in a format without windows."""
    return f"the context is limited to the attention window of {window} tokens, within which nothing slides"


def deci_heads(shape: ModelShape) -> tuple[int, list[int]]:
    """Return the query heads of every layer and the key-value heads of each layer.

    The key-value heads of a layer are the smallest number that divides the query heads and is at least its own.
    """
    widest = max(range(len(shape.heads)), key=lambda i: shape.kv_heads[i])
    heads = shape.heads[widest]
    return heads, [next(n for n in range(own, heads + 1) if heads % n == 0) for own in shape.kv_heads]


def deci_config(config: dict[str, Any], shape: ModelShape, heads: int, kv_heads: list[int]) -> dict[str, Any]:
    """Return ``config.json`` of a DeciLM: the family's values, with ``block_configs`` in place of one width for all."""
    values = dict(config)
    for family_only in ("pruneengine_widths", "pruneengine_biases", "intermediate_size", "num_key_value_heads",
                        "layer_types", "sliding_window", "use_sliding_window", "max_window_layers"):  # fmt: skip
        values.pop(family_only, None)
    rope = values.get("rope_parameters") or {}
    values |= {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{CONFIG_CODE.stem}.DeciLMConfig"},
        "num_attention_heads": heads,
        "head_dim": shape.head_dim,
        "rope_theta": rope.get("rope_theta", 10000.0),
        "attention_bias": "self_attn.o_proj" in shape.biases,
        "qkv_bias": any(path.startswith("self_attn") and "o_proj" not in path for path in shape.biases),
        "mlp_bias": any(path.startswith("mlp") for path in shape.biases),
        "block_configs": [
            {
                "attention": {"no_op": False, "replace_with_linear": False, "n_heads_in_group": heads // own},
                "ffn": {"no_op": False, "replace_with_linear": False, "intermediate_size": channels,
                        "hidden_act": shape.activation},
            }
            for own, channels in zip(kv_heads, shape.channels, strict=True)
        ],
    }  # fmt: skip
    if shape.window:
        values["max_position_embeddings"] = shape.window
    return dict(sorted(values.items()))


def _complete_biases(model: PreTrainedModel, shape: ModelShape) -> None:
    """Add zero biases where a flag of DeciLM that gives biases of ``shape`` gives further ones."""
    llama = Family(())
    together = ((llama.query, llama.key, llama.value), (llama.attention_out,), (*llama.mlp_in, llama.mlp_out))
    completed = {path for paths in together if shape.biases & set(paths) for path in paths}
    for layer in model.model.layers:
        for path in completed - shape.biases:
            add_zero_bias(layer.get_submodule(path))
