"""The texts of a search: calibration pool, objective and held-out blocks, and the proof that none is another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pruneengine.data.windows import Samples, check_overlap, evaluation_windows


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


class TextConfig(Protocol):
    """What a search's config says of its texts."""

    calibration: str
    search_text: str
    seqlen: int
    seed: int


def split_windows(config: TextConfig, tokenizer: Any, searched: int, held_out: int) -> tuple[Samples, Samples]:
    """Return the windows to search on and those to hold out, drawn by the seed: no two share tokens.

    Raises:
        ValueError: the text has fewer windows.
    """
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
    config: TextConfig, texts: SearchTexts, report: Samples | None = None, report_text: str | None = None
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
