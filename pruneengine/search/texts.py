"""The texts of a search: calibration pool, objective and held-out blocks, and the proof that none is another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruneengine.data.windows import Samples, check_overlap, evaluation_windows, load_samples
from pruneengine.search.adapruner.config import SearchConfig
from pruneengine.search.dsa.config import DsaConfig


@dataclass(frozen=True)
class SearchTexts:
    """The texts of a search; none of them may be the text that results are reported on.

    Attributes:
        pool: calibration samples by their length.
        search: blocks of the objective, in the order in which they are evaluated.
        held_out: blocks that only finalists see.
    """

    pool: Mapping[int, Samples]
    search: Samples
    held_out: Samples


def search_texts(config: SearchConfig, tokenizer: Any, model: nn.Module | None = None) -> SearchTexts:
    """The texts that a config names, as tokens.

    Args:
        config: the specs, sizes and seed.
        tokenizer: a transformers tokenizer.
        model: for calibration text "self".

    Raises:
        ValueError: a text that does not exist or is too short; the message says what there is and what is needed.
    """
    pool = {
        length: load_samples(config.calibration, tokenizer, config.pool, length, config.seed, model=model)
        for length in config.lengths
    }
    return SearchTexts(pool, *search_blocks(config, tokenizer))


def search_blocks(config: SearchConfig, tokenizer: Any) -> tuple[Samples, Samples]:
    """Search and held-out blocks, drawn by the seed from all windows of the text: no two share tokens.

    Raises:
        ValueError: the text has fewer windows.
    """
    return _blocks(config, tokenizer, config.windows, config.held_out)


def dsa_texts(config: DsaConfig, tokenizer: Any, model: nn.Module | None = None) -> SearchTexts:
    """The texts of a search for an allocation function, as :func:`search_texts`."""
    length = config.calibration_seqlen
    calibration = load_samples(config.calibration, tokenizer, config.nsamples, length, config.seed, model=model)
    blocks = _blocks(config, tokenizer, config.search_windows, config.held_out_windows)
    return SearchTexts({length: calibration}, *blocks)


def _blocks(config: SearchConfig | DsaConfig, tokenizer: Any, searched: int, held_out: int) -> tuple[Samples, Samples]:
    windows = evaluation_windows(config.search_text, tokenizer, config.seqlen)
    if len(windows) < searched + held_out:
        raise ValueError(
            f"{config.search_text}: {len(windows)} windows of {config.seqlen} tokens; wanted "
            f"{searched} to search on and {held_out} to hold out"
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(config.seed))
    parts = order[:searched].tolist(), order[searched : searched + held_out].tolist()
    return tuple(Samples(windows.tokens[part], tuple(windows.source[i] for i in part)) for part in parts)


def describe(
    config: SearchConfig | DsaConfig, texts: SearchTexts, report: Samples | None = None, report_text: str | None = None
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """What each text is, and the proof that none is another: overlap is the share of windows with a run of 32 tokens
    (or of a whole window) that an earlier text has.

    Raises:
        ValueError: the report's text was searched on.
    """
    named = {f"calibration, {length} tokens": (config.calibration, of) for length, of in texts.pool.items()}
    named |= {"search": (config.search_text, texts.search), "held out": (config.search_text, texts.held_out)}
    if report is not None:
        named["report"] = (report_text, report)
    described: dict[str, dict[str, Any]] = {}
    warnings = []
    for position, (name, (spec, samples)) in enumerate(named.items()):
        earlier = list(named.items())[:position]
        found = {other: check_overlap(of, samples) for other, (_, of) in earlier}
        shared = {other: overlap["overlap"] for other, overlap in found.items()}
        described[name] = {
            "spec": spec,
            "windows": len(samples),
            "tokens": samples.tokens.numel(),
            "hash": samples.hash,
            "overlap": shared,
        }
        for other, part in shared.items():
            if part and name == "report" and other in ("search", "held out"):
                raise ValueError(
                    f"evaluation text {spec}: {part:.1%} of its windows are in the search's text {config.search_text}; "
                    "results must be reported on text that the search never saw"
                )
            if part and not (name.startswith("calibration") and other.startswith("calibration")):
                run = found[other]["ngram"]
                warnings.append(f"{part:.1%} of the {name} windows share {run} tokens or more with the {other} text")
    return described, tuple(warnings)
