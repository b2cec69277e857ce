"""Texts of an AdaPruner search."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruneengine.data.windows import Samples, load_samples
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.texts import SearchTexts, split_windows


def search_texts(config: AdaPrunerConfig, tokenizer: Any, model: nn.Module | None = None) -> SearchTexts:
    """Return the texts that a config names, as tokens.

    Args:
        config: the specs, sizes and seed.
        tokenizer: a transformers tokenizer.
        model: model that writes the calibration text "self".

    Raises:
        ValueError: a text that does not exist or is too short; the message names the windows there are and are needed.
    """
    pool = {
        length: load_samples(config.calibration, tokenizer, config.pool, length, config.seed, model=model)
        for length in config.lengths
    }
    return SearchTexts(pool, *search_blocks(config, tokenizer))


def search_blocks(config: AdaPrunerConfig, tokenizer: Any) -> tuple[Samples, Samples]:
    """Return search and held-out blocks, drawn by the seed from all windows of the text: no two share tokens.

    Raises:
        ValueError: the text has fewer windows.
    """
    return split_windows(config, tokenizer, config.windows, config.held_out)
