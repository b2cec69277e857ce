"""The format deci: DeciLM's ``block_configs``, which vLLM's loader of NVIDIA's Nemotron-NAS models reads.

That loader takes one number of query heads for all layers, ``num_attention_heads``, and for each layer a number of
query heads for one key-value head and a number of MLP channels. Query heads that a layer lacks are zeros; so are
key-value heads where their number does not divide the query heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.checkpoint.config_json import checkpoint_config
from pruneengine.checkpoint.reload_proof import fixed_tokens
from pruneengine.export.compare_logits import agree, logits
from pruneengine.export.deci_proof import reopen
from pruneengine.export.layout import ModelShape
from pruneengine.export.outcome import Written
from pruneengine.export.pad import write_folder
from pruneengine.export.padding import pad_model
from pruneengine.export.runtimes import check_deci
from pruneengine.model import Family
from pruneengine.model.edit import add_zero_bias

CONFIG_CODE = Path(__file__).with_name("configuration_decilm.py")
NOT_RUN = (
    "vLLM itself was not run: the fields are the ones that its nemotron_nas.py reads (a release that knows "
    "ffn.intermediate_size), checked by a model built from them as it does"
)
check = check_deci


def write(
    model: nn.Module, tokenizer: Any, layout: ModelShape, folder: Path, *, name: str, dtype: torch.dtype, proof: bool
) -> Written:
    """Bring ``model`` into DeciLM's shape in place and write it; ``name`` and ``dtype`` are the other formats'."""
    tokens = fixed_tokens(model.config.vocab_size, layout.window)
    expected = logits(model, tokens) if proof else None
    before = sum(parameter.numel() for parameter in model.parameters())
    heads, kv_heads = deci_heads(layout)
    # Before padding: layers that differ in query heads for a key-value head are no structure of ours.
    config = deci_config(checkpoint_config(model), layout, heads, kv_heads)
    pad_model(model, [heads] * len(kv_heads), kv_heads, layout.channels)
    _complete_biases(model, layout)
    after = sum(parameter.numel() for parameter in model.parameters())
    write_folder(model, tokenizer, folder, config)
    (folder / CONFIG_CODE.name).write_text(CONFIG_CODE.read_text(encoding="utf-8"), encoding="utf-8")
    verified = []
    if proof:
        what = "opened from its block_configs by transformers' layers"
        verified.append(agree(what, logits(reopen(folder, model.dtype), tokens), expected))
    cost = f"{before:,} => {after:,} parameters ({after / before - 1:+.1%})"
    remarks = [NOT_RUN, f"{cost}: every layer has the same number of query heads, zeros where there were fewer"]
    if tuple(kv_heads) != layout.kv_heads:
        odd = next(i for i, n in enumerate(kv_heads) if n != layout.kv_heads[i])
        remarks.append(
            f"key-value heads must divide the {heads} query heads: "
            f"layer {odd}, for one, has {kv_heads[odd]} instead of {layout.kv_heads[odd]}"
        )
    if layout.window:
        remarks.append(window_remark(layout.window))
    return Written("vllm serve PATH --trust-remote-code", tuple(verified), tuple(remarks))


def window_remark(window: int) -> str:
    """What becomes of a sliding window in a format without one."""
    return f"the context is limited to the attention window of {window} tokens, within which nothing slides"


def deci_heads(layout: ModelShape) -> tuple[int, list[int]]:
    """Query heads of all layers, and key-value heads of each: the fewest that divide them and hold what is there."""
    widest = max(range(len(layout.heads)), key=lambda i: layout.kv_heads[i])
    heads = layout.heads[widest]
    return heads, [next(n for n in range(own, heads + 1) if heads % n == 0) for own in layout.kv_heads]


def deci_config(config: dict[str, Any], layout: ModelShape, heads: int, kv_heads: list[int]) -> dict[str, Any]:
    """``config.json`` of a DeciLM: the family's values, with ``block_configs`` in place of one width for all."""
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
        "head_dim": layout.head_dim,
        "rope_theta": rope.get("rope_theta", 10000.0),
        "attention_bias": "self_attn.o_proj" in layout.biases,
        "qkv_bias": any(path.startswith("self_attn") and "o_proj" not in path for path in layout.biases),
        "mlp_bias": any(path.startswith("mlp") for path in layout.biases),
        "block_configs": [
            {
                "attention": {"no_op": False, "replace_with_linear": False, "n_heads_in_group": heads // own},
                "ffn": {"no_op": False, "replace_with_linear": False, "intermediate_size": channels,
                        "hidden_act": layout.activation},
            }
            for own, channels in zip(kv_heads, layout.channels, strict=True)
        ],
    }  # fmt: skip
    if layout.window:
        values["max_position_embeddings"] = layout.window
    return dict(sorted(values.items()))


def _complete_biases(model: nn.Module, layout: ModelShape) -> None:
    """Zeros for the biases that one flag of DeciLM brings along with those of ``layout``."""
    llama = Family(())
    together = ((llama.query, llama.key, llama.value), (llama.attention_out,), (*llama.mlp_in, llama.mlp_out))
    wanted = {path for paths in together if layout.biases & set(paths) for path in paths}
    for layer in model.model.layers:
        for path in wanted - layout.biases:
            add_zero_bias(layer.get_submodule(path))
