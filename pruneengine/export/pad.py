"""Format pad: every layer widened with zeros to the width that the family's own class needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruneengine.checkpoint.config_json import checkpoint_config, loader_of
from pruneengine.checkpoint.reload_proof import fixed_tokens, prove_reload
from pruneengine.checkpoint.write import write_weights
from pruneengine.export.compare_logits import agree, logits
from pruneengine.export.model_shape import ModelShape
from pruneengine.export.outcome import Written
from pruneengine.export.padding import pad_units
from pruneengine.export.runtimes import check_pad
from pruneengine.model import find_groups, text_config
from pruneengine.model.config_sync import by_config_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

check = check_pad


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
    """Pad ``model`` in place and write it into ``folder``; only other formats read ``name`` and ``dtype``."""
    tokens = fixed_tokens(text_config(model.config).vocab_size)
    expected = logits(model, tokens) if proof else None
    verified = []
    before = sum(parameter.numel() for parameter in model.parameters())
    pad_units(model, padded_units(model))
    after = sum(parameter.numel() for parameter in model.parameters())
    if expected is not None:
        verified.append(agree("padded in memory", logits(model, tokens), expected))
    config = checkpoint_config(model)
    write_folder(model, tokenizer, folder, config)
    if proof:
        difference = prove_reload(folder, model, tokenizer).max_difference
        verified.append(
            f"opened by plain transformers in a fresh process: logits within {difference:.1e} of the padded model's"
        )
    cost = f"{before:,} => {after:,} parameters ({after / before - 1:+.1%}): the zeros are stored and multiplied"
    return Written(loader_of(config), tuple(verified), (cost,))


def padded_units(model: nn.Module) -> dict[str, int]:
    """Return the number of units of each group that a plain loader needs, by group name.

    It is that of the widest layer of the kind, or the dense model's if the config has no name for it.
    """
    structure = find_groups(model)
    widest = {kind: max(group.units for group in structure.of_kind((kind,))) for kind in ("heads", "mlp")}
    units = {group.name: widest[group.kind] for group in structure.groups}
    if structure.family.kinds_without_config_name:
        dense = find_groups(by_config_alone(model))
        units |= {group.name: group.units for group in dense.of_kind(structure.family.kinds_without_config_name)}
    return units


def write_folder(model: PreTrainedModel, tokenizer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Write weights, ``config.json``, generation settings and tokenizer into ``folder``."""
    write_weights(model, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.to_json_file(folder / "generation_config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
