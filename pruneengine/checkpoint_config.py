"""What a pruned model's ``config.json`` says: read from the modules, because only they know what was removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

PLAIN_LOADER = "AutoModelForCausalLM.from_pretrained(path)"
PER_LAYER_LOADER = "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)"
MODELING_FILE = Path(__file__).with_name("modeling_pruned.py")
MODELING_MODULE = MODELING_FILE.stem
# model_type: (class of transformers, class of modeling_pruned.py)
FAMILIES = {
    "llama": ("LlamaForCausalLM", "PrunedLlamaForCausalLM"),
    "mistral": ("MistralForCausalLM", "PrunedMistralForCausalLM"),
    "qwen2": ("Qwen2ForCausalLM", "PrunedQwen2ForCausalLM"),
    "qwen3": ("Qwen3ForCausalLM", "PrunedQwen3ForCausalLM"),
}


def layer_widths(model: nn.Module) -> list[dict[str, int]]:
    """Heads, key-value heads and MLP channels of every decoder layer, by their config names.

    Raises:
        TypeError: the model has no ``model.layers`` with ``self_attn`` and ``mlp`` linear layers as Llama has them.
        ValueError: a projection does not hold whole heads, or a layer has nothing left.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise TypeError(f"expected a Llama-like causal language model (model.layers), got {type(model).__name__}")
    if len(layers) == 0:
        raise ValueError("the model has no decoder layer left")
    return [_widths(index, layer) for index, layer in enumerate(layers)]


def _widths(index: int, layer: nn.Module) -> dict[str, int]:
    try:
        attention, head_dim = layer.self_attn, layer.self_attn.head_dim
        rows = {
            "num_attention_heads": (attention.q_proj.weight.shape[0], head_dim),
            "num_key_value_heads": (attention.k_proj.weight.shape[0], head_dim),
            "intermediate_size": (layer.mlp.gate_proj.weight.shape[0], 1),
        }
    except AttributeError as error:
        raise TypeError(f"layer {index} is not a Llama-like decoder layer: {error}") from None
    for name, (count, unit) in rows.items():
        if count == 0 or count % unit:
            raise ValueError(f"layer {index}: {count} rows cannot give {name} in whole units of {unit}")
    return {name: count // unit for name, (count, unit) in rows.items()}


def sync_config(model: nn.Module) -> None:
    """Bring ``model.config`` in step with the modules, in place.

    Sets the number of layers, their attention types, the head size, the tie flag and the widths. Where layers differ
    the config carries the widest one's numbers, and ``config.pruneengine_widths`` those of each layer by name.

    Raises:
        TypeError, ValueError: as :func:`layer_widths`; or the removed layers' attention types cannot be told.
    """
    widths = layer_widths(model)
    config = model.config
    config.num_hidden_layers = len(widths)
    config.head_dim = model.model.layers[0].self_attn.head_dim
    config.tie_word_embeddings = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    _sync_layer_types(model)
    for name in widths[0]:
        setattr(config, name, max(layer[name] for layer in widths))
    if all(layer == widths[0] for layer in widths):
        config.__dict__.pop("pruneengine_widths", None)
    else:
        config.pruneengine_widths = widths


def _sync_layer_types(model: nn.Module) -> None:
    config, layers = model.config, model.model.layers
    types = getattr(config, "layer_types", None)
    if not types:
        return
    if len(types) != len(layers):
        known = [getattr(layer.self_attn, "layer_type", None) for layer in layers]
        if None in known and len(set(types)) > 1:
            raise ValueError(f"config.layer_types has {len(types)} entries for {len(layers)} layers; trim it")
        types = [kind or types[0] for kind in known]
        config.layer_types = types
    if getattr(config, "max_window_layers", None) is not None:
        sliding = types.index("sliding_attention") if "sliding_attention" in types else len(types)
        config.max_window_layers = min(config.max_window_layers, sliding)


def checkpoint_config(model: nn.Module) -> dict[str, Any]:
    """The JSON value to write as ``config.json``; ``model.config`` is brought in step first.

    Equal widths give a config that plain transformers loads. transformers' LlamaConfig refuses a number of heads that
    does not divide the hidden size even with ``head_dim`` given; without biases such a model is written as its twin
    Mistral without a sliding window, the same function under a config that takes it. Everything else names the
    modelling file that travels along.

    Raises:
        TypeError, ValueError: as :func:`sync_config`; or the widths differ in a family the modelling file lacks.
    """
    sync_config(model)
    values = json.loads(model.config.to_json_string(use_diff=True))
    for stale in ("_model_name_or_path", "_name_or_path", "quantization_config", "auto_map", "architectures"):
        values.pop(stale, None)
    values["dtype"] = str(model.dtype).removeprefix("torch.")
    family = values["model_type"]
    whole = family != "llama" or values["hidden_size"] % values["num_attention_heads"] == 0
    biased = bool(values.get("attention_bias") or values.get("mlp_bias"))
    if "pruneengine_widths" not in values and not whole and not biased:
        family = values["model_type"] = "mistral"
        values["sliding_window"] = None
        for name in ("attention_bias", "mlp_bias", "pretraining_tp"):
            values.pop(name, None)
    elif not whole:
        values.setdefault("pruneengine_widths", layer_widths(model))
        heads, hidden = values["num_attention_heads"], values["hidden_size"]
        values["num_attention_heads"] = next(n for n in range(heads, hidden + 1) if hidden % n == 0)
    per_layer = "pruneengine_widths" in values
    if per_layer and family not in FAMILIES:
        raise ValueError(f"layers of different widths can be saved for {', '.join(FAMILIES)}, not for {family!r}")
    if per_layer:
        values["auto_map"] = {"AutoModelForCausalLM": f"{MODELING_MODULE}.{FAMILIES[family][1]}"}
    plain, pruned = FAMILIES.get(family, (type(model).__name__, None))
    values["architectures"] = [pruned if per_layer else plain]
    return dict(sorted(values.items()))


def runs_shipped_code(folder: Path) -> bool:
    """Whether the checkpoint needs a modelling file and that file is, byte for byte, the one shipped here.

    Raises:
        OSError, ValueError: ``config.json`` is missing or no JSON.
    """
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    ours = [{"AutoModelForCausalLM": f"{MODELING_MODULE}.{pruned}"} for _, pruned in FAMILIES.values()]
    copy = folder / MODELING_FILE.name
    return auto_map in ours and copy.is_file() and copy.read_bytes() == MODELING_FILE.read_bytes()
