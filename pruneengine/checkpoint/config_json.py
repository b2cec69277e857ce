"""``config.json`` of a pruned model, read from its modules because only they know what was removed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneengine.common.errors import InputError
from pruneengine.model import FAMILIES, MODELING_FILE, auto_class, find_groups
from pruneengine.model.config_sync import layer_widths, sync_config
from pruneengine.model.families import ANY_HEADS_CLASS, ANY_HEADS_TYPE, EVEN_HEADS_TYPE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODELING_MODULE = MODELING_FILE.stem
# The classes of the modelling file: "Pruned" and the name of the class of transformers. Read from its text, because
# importing it needs transformers.
SHIPPED = tuple(re.findall(r"^class (Pruned\w+)\(", MODELING_FILE.read_text(encoding="utf-8"), re.MULTILINE))


def checkpoint_config(model: PreTrainedModel) -> dict[str, Any]:
    """Return the JSON value to write as ``config.json``; ``model.config`` is brought in step first.

    Equal widths give a config that plain transformers loads. transformers' LlamaConfig refuses a number of heads that
    does not divide the hidden size, even if ``head_dim`` is given. Without biases such a model is written as an
    equivalent Mistral without a sliding window, whose config takes any number of heads. The config of every other model
    (with different widths per layer, or with biases that no flag of the config gives) names the modelling file that
    travels along.

    Raises:
        ValueError: as :func:`sync_config`; or the widths differ in a family the modelling file lacks.
    """
    sync_config(model)
    values = json.loads(model.config.to_json_string(use_diff=True))
    for stale in ("_model_name_or_path", "_name_or_path", "quantization_config", "auto_map", "architectures"):
        values.pop(stale, None)
    values["dtype"] = str(model.dtype).removeprefix("torch.")
    plain = type(model).__name__.removeprefix("Pruned")
    text = values.get("text_config", values)
    divisible = text["model_type"] != EVEN_HEADS_TYPE or text["hidden_size"] % text["num_attention_heads"] == 0
    biased = bool(text.get("attention_bias") or text.get("mlp_bias"))
    if "pruneengine_widths" not in text and not divisible and not biased:
        text["model_type"] = ANY_HEADS_TYPE
        plain = ANY_HEADS_CLASS if text is values else plain
        text["sliding_window"] = None
        for name in ("attention_bias", "mlp_bias", "pretraining_tp"):
            text.pop(name, None)
    elif not divisible:
        text.setdefault("pruneengine_widths", layer_widths(find_groups(model)))
        heads, hidden = text["num_attention_heads"], text["hidden_size"]
        text["num_attention_heads"] = next(n for n in range(heads, hidden + 1) if hidden % n == 0)
    shipped = bool({"pruneengine_widths", "pruneengine_shapes", "pruneengine_biases"} & text.keys())
    pruned = f"Pruned{plain}"
    if shipped and pruned not in SHIPPED:
        raise InputError(
            f"{values['model_type']!r} can be saved only with widths that its config can say, and without new biases: "
            f"the modelling file for anything else has {', '.join(SHIPPED)}, but no {pruned}"
        )
    if shipped:
        values["auto_map"] = {auto_class(values["model_type"]): f"{MODELING_MODULE}.{pruned}"}
    values["architectures"] = [pruned if shipped else plain]
    return dict(sorted(values.items()))


def loader_of(config: Mapping[str, Any]) -> str:
    """Return the call that opens a checkpoint with this config."""
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    return f"{auto_class(config['model_type'])}.from_pretrained(path{trust})"


def runs_shipped_code(folder: Path) -> bool:
    """Return True if the checkpoint needs a modelling file and holds, byte for byte, the one shipped here.

    Raises:
        OSError, ValueError: ``config.json`` is missing or no JSON.
    """
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    openers = {family.auto_class for family in FAMILIES}
    ours = [{opener: f"{MODELING_MODULE}.{pruned}"} for opener in openers for pruned in SHIPPED]
    copy = folder / MODELING_FILE.name
    return auto_map in ours and copy.is_file() and copy.read_bytes() == MODELING_FILE.read_bytes()


def code_beside(folder: Path) -> list[str]:
    """Return the Python files of a checkpoint, and its folder ``custom_generate``, other than the shipped file.

    Whoever trusts a checkpoint for the shipped file trusts these as well: transformers runs
    ``custom_generate/generate.py`` as it opens a model.
    """
    files = {str(file.relative_to(folder)) for file in folder.rglob("*.py")} - {MODELING_FILE.name}
    return sorted(files or {name for name in ("custom_generate",) if (folder / name).exists()})
