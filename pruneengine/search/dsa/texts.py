"""Texts of a search for an allocation function."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruneengine.data.windows import load_samples
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.texts import SearchTexts, split_windows


def dsa_texts(config: DsaConfig, tokenizer: Any, model: nn.Module | None = None) -> SearchTexts:
    """The texts of a search for an allocation function, as :func:`search_texts`."""
    length = config.calibration_seqlen
    calibration = load_samples(config.calibration, tokenizer, config.nsamples, length, config.seed, model=model)
    blocks = split_windows(config, tokenizer, config.search_windows, config.held_out_windows)
    return SearchTexts({length: calibration}, *blocks)
