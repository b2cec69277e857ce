"""The format pad: every layer as wide as the widest, in the family's own class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.checkpoint import write_weights
from pruneengine.checkpoint_config import PLAIN_LOADER, checkpoint_config
from pruneengine.export.compare import agree, fixed_tokens, logits
from pruneengine.export.outcome import Written
from pruneengine.export.padding import pad_model
from pruneengine.layout import Layout
from pruneengine.reload import prove_reload


def check(layout: Layout) -> None:
    """ValueError if there is nothing to pad, or padding does not suffice for a plain loader."""
    if layout.uniform:
        raise ValueError("every layer has the same width already: there is nothing to pad")
    if layout.loose_biases:
        raise ValueError("its biases have no flag in the config: padded, it would still need the modelling file")


def write(
    model: nn.Module, tokenizer: Any, layout: Layout, folder: Path, *, name: str, dtype: torch.dtype, proof: bool
) -> Written:
    """Pad ``model`` in place and write it into ``folder``; ``name`` and ``dtype`` are the other formats'."""
    tokens = fixed_tokens(None, model.config.vocab_size)
    expected = logits(model, tokens) if proof else None
    before = sum(parameter.numel() for parameter in model.parameters())
    layers = len(layout.heads)
    pad_model(
        model, *([max(counts)] * layers for counts in (layout.heads, layout.kv_heads, layout.channels))
    )  # fmt: skip
    after = sum(parameter.numel() for parameter in model.parameters())
    verified = [agree("padded in memory", logits(model, tokens), expected, model.dtype)] if proof else []
    write_folder(model, tokenizer, folder, checkpoint_config(model))
    if proof:
        found = prove_reload(folder, model, tokenizer)
        verified.append(
            f"opened by plain transformers in a fresh process: logits within {found.max_difference:.1e} of the padded "
            "model's"
        )
    cost = f"{before:,} => {after:,} parameters ({after / before - 1:+.1%}): the zeros are stored and multiplied"
    return Written(PLAIN_LOADER, tuple(verified), (cost,))


def write_folder(model: nn.Module, tokenizer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Weights, ``config.json``, generation settings and tokenizer."""
    write_weights(model, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.to_json_file(folder / "generation_config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
