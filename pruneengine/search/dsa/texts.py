"""Texts of a search for an allocation function."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruneengine.data.windows import load_samples
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.texts import SearchTexts, split_windows


def dsa_texts(config: DsaConfig, tokenizer: Any, model: nn.Module | None = None) -> SearchTexts:
    """Return the texts of a search for an allocation function, as tokens.

    Args:
        config: the specs, sizes and seed.
        tokenizer: a transformers tokenizer.
        model: model that writes the calibration text "self".

    Raises:
        ValueError: a text that does not exist or is too short; the message names the windows there are and are needed.
    """
    length = config.calibration_seqlen
    calibration = load_samples(config.calibration, tokenizer, config.nsamples, length, config.seed, model=model)
    blocks = split_windows(config, tokenizer, config.search_windows, config.held_out_windows)
    return SearchTexts({length: calibration}, *blocks)
