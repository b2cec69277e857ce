"""The format pad: every layer as wide as the family's own class wants it, in zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.checkpoint.config_json import checkpoint_config, loader_of
from pruneengine.checkpoint.reload_proof import fixed_tokens, prove_reload
from pruneengine.checkpoint.write import write_weights
from pruneengine.export.compare_logits import agree, logits
from pruneengine.export.layout import ModelShape
from pruneengine.export.outcome import Written
from pruneengine.export.padding import pad_units
from pruneengine.export.runtimes import check_pad
from pruneengine.model import find_groups, text_config
from pruneengine.model.config_sync import by_config_alone

check = check_pad


def write(
    model: nn.Module, tokenizer: Any, layout: ModelShape, folder: Path, *, name: str, dtype: torch.dtype, proof: bool
) -> Written:
    """Pad ``model`` in place and write it into ``folder``; ``name`` and ``dtype`` are the other formats'."""
    tokens = fixed_tokens(text_config(model.config).vocab_size)
    expected = logits(model, tokens) if proof else None
    before = sum(parameter.numel() for parameter in model.parameters())
    pad_units(model, wanted_units(model))
    after = sum(parameter.numel() for parameter in model.parameters())
    verified = [agree("padded in memory", logits(model, tokens), expected)] if proof else []
    config = checkpoint_config(model)
    write_folder(model, tokenizer, folder, config)
    if proof:
        found = prove_reload(folder, model, tokenizer)
        verified.append(
            f"opened by plain transformers in a fresh process: logits within {found.max_difference:.1e} of the padded "
            "model's"
        )
    cost = f"{before:,} => {after:,} parameters ({after / before - 1:+.1%}): the zeros are stored and multiplied"
    return Written(loader_of(config), tuple(verified), (cost,))


def wanted_units(model: nn.Module) -> dict[str, int]:
    """How many units each group must have for a plain loader: the widest layer's of its kind, or, where the config has
    no name for their number, the dense model's."""
    structure = find_groups(model)
    widest = {kind: max(group.units for group in structure.of_kind((kind,))) for kind in ("heads", "mlp")}
    wanted = {group.name: widest[group.kind] for group in structure.groups}
    if structure.family.kinds_without_config_name:
        dense = find_groups(by_config_alone(model))
        wanted |= {group.name: group.units for group in dense.of_kind(structure.family.kinds_without_config_name)}
    return wanted


def write_folder(model: nn.Module, tokenizer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Weights, ``config.json``, generation settings and tokenizer."""
    write_weights(model, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.to_json_file(folder / "generation_config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
