"""Model card of a checkpoint, its ``README.md``: the sizes before and after, the recipe, and the call that opens it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruneengine.model.families import ANY_HEADS_TYPE

TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- pruned
- pruneengine
---

# {title}

A pruned {family} model, written by pruneengine. The licence of the unpruned model applies; add it above.

## Loading

```python
from transformers import {opener}, AutoTokenizer

path = "."  # this folder
model = {loader}
tokenizer = AutoTokenizer.from_pretrained(path)
```
{note}
## Size

{sizes}
{sections}"""

SHIPPED_NOTE = """
{reason}, so the call runs `modeling_pruned.py` of this folder; it needs transformers only.
"""
WIDTHS_REASON = "The layers differ in width"
SHAPES_REASON = "The layers differ in width, or this architecture's config has no name for a width that changed"
BIASES_REASON = "Biases stand in for what removed units gave on average, and this architecture's config has none there"

MISTRAL_NOTE = """
The numbers of heads do not divide the hidden size, which transformers refuses in a Llama config. The model is written
as its twin Mistral without a sliding window, which computes the same function.
"""
OTHER_TYPE_NOTE = """
transformers has no class for a {dense} model. This one is written as its twin, a {family} with queries, keys and values
in linears of their own, which computes the same function.
"""

SIZE_NAMES = {
    "num_hidden_layers": "decoder layers",
    "num_attention_heads": "attention heads a layer",
    "num_key_value_heads": "key-value heads a layer",
    "intermediate_size": "MLP channels a layer",
    "num_experts": "experts a layer",
    "moe_intermediate_size": "channels of an expert",
}
# Mixtral's config has other names for the sizes of experts.
OTHER_NAMES = {
    "num_experts": ("num_experts", "num_local_experts"),
    "moe_intermediate_size": ("moe_intermediate_size", "intermediate_size"),
}


def model_card(
    title: str,
    config: Mapping[str, Any],
    loader: str,
    parameters: int,
    widths: list[dict[str, int]],
    dense_config: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    report: Mapping[str, Any] | None = None,
    remarks: tuple[str, Sequence[str]] | None = None,
) -> str:
    """Return the card as Markdown text.

    Args:
        title: the checkpoint's name.
        config: the JSON value of the checkpoint's ``config.json``.
        loader: the call that opens the checkpoint.
        parameters: number of parameters, tied ones counted once.
        widths: widths of every layer, as :func:`pruneengine.model.config_sync.layer_widths` gives them.
        dense_config: config of the unpruned model, for the column "before".
        recipe: YAML text of the recipe.
        report: measured values; numbers, strings and mappings of them are shown.
        remarks: a heading and the paragraphs of a section of its own, in words.
    """
    sizes = ["| | before | after |", "|---|---:|---:|"] if dense_config else ["| | after |", "|---|---:|"]
    for key, name in SIZE_NAMES.items():
        if key != "num_hidden_layers" and key not in widths[0]:
            continue
        after = len(widths) if key == "num_hidden_layers" else _span([layer[key] for layer in widths])
        before = f" {_first(dense_config, OTHER_NAMES.get(key, (key,)))} |" if dense_config else ""
        sizes.append(f"| {name} |{before} {after} |")
    sizes.append(f"| parameters |{' |' if dense_config else ''} {parameters:,} |")
    sections = f"\n## {remarks[0]}\n\n" + "\n\n".join(remarks[1]) + "\n" if remarks else ""
    sections += f"\n## Recipe\n\n```yaml\n{recipe.strip()}\n```\n" if recipe else ""
    rows = [f"| {key} | {value} |" for key, value in _flat(report or {})]
    if rows:
        sections += "\n## Report\n\n| | |\n|---|---:|\n" + "\n".join(rows) + "\n"
    dense_type = (dense_config or config).get("model_type")
    type_note = ""
    if dense_type != config["model_type"]:
        other = OTHER_TYPE_NOTE.format(dense=dense_type, family=config["model_type"])
        type_note = MISTRAL_NOTE if config["model_type"] == ANY_HEADS_TYPE else other
    reasons = {"pruneengine_widths": WIDTHS_REASON, "pruneengine_shapes": SHAPES_REASON}
    text = config.get("text_config", config)
    reason = next((reasons[name] for name in reasons if name in text), BIASES_REASON)
    note = SHIPPED_NOTE.format(reason=reason) if "auto_map" in config else ""
    return TEMPLATE.format(
        title=title,
        family=config["model_type"],
        loader=loader,
        opener=loader.partition(".")[0],
        note=note + type_note,
        sizes="\n".join(sizes),
        sections=sections,
    )


def _first(config: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((config[name] for name in names if name in config), "")


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _flat(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in report.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            rows.append((f"{prefix}{key}", f"{value:.6g}"))
        elif isinstance(value, str | int):
            rows.append((f"{prefix}{key}", str(value).replace("|", "\\|").replace("\n", " ")))
    return rows
