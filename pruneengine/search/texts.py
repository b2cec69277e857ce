"""Texts of a search: calibration pool, objective and held-out blocks, and the check that they do not overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pruneengine.common.errors import InputError
from pruneengine.data.windows import Samples, check_overlap, evaluation_windows


@dataclass(frozen=True)
class SearchTexts:
    """The texts of a search; none of them may be the text that results are reported on.

    Attributes:
        pool: calibration samples by their length in tokens.
        search: blocks of the objective, in the order of their evaluation.
        held_out: blocks that only finalists see.
    """

    pool: Mapping[int, Samples]
    search: Samples
    held_out: Samples


class TextConfig(Protocol):
    """Options of a search that choose its texts."""

    @property
    def calibration(self) -> str:
        """Name of the calibration text."""
        ...

    @property
    def search_text(self) -> str:
        """Name of the text of the objective."""
        ...

    @property
    def seqlen(self) -> int:
        """Tokens per window of the objective's text."""
        ...

    @property
    def seed(self) -> int:
        """Seed by which windows are drawn."""
        ...


def split_windows(config: TextConfig, tokenizer: Any, searched: int, held_out: int) -> tuple[Samples, Samples]:
    """Return the windows to search on and those to hold out, drawn by the seed: no two share tokens.

    Raises:
        ValueError: the text has fewer windows.
    """
    windows = evaluation_windows(config.search_text, tokenizer, config.seqlen)
    if len(windows) < searched + held_out:
        raise InputError(
            f"{config.search_text}: {len(windows)} windows of {config.seqlen} tokens; wanted "
            f"{searched} to search on and {held_out} to hold out"
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(config.seed))
    to_search, to_hold_out = order[:searched].tolist(), order[searched : searched + held_out].tolist()
    return _rows(windows, to_search), _rows(windows, to_hold_out)


def describe(
    config: TextConfig, texts: SearchTexts, report: Samples | None = None, report_text: str | None = None
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Return what each text is by its name, and warnings of texts that overlap.

    The overlap of two texts is the share of windows with a run of 32 tokens (or of a whole window) that an earlier text
    has.

    Args:
        config: options of the search.
        texts: texts of the search.
        report: windows that the result is reported on, if any.
        report_text: name of their text.

    Raises:
        ValueError: the report's text was searched on.
    """
    named: dict[str, tuple[str | None, Samples]] = {
        f"calibration, {length} tokens": (config.calibration, samples) for length, samples in texts.pool.items()
    }
    named |= {"search": (config.search_text, texts.search), "held out": (config.search_text, texts.held_out)}
    if report is not None:
        named["report"] = (report_text, report)
    described: dict[str, dict[str, Any]] = {}
    warnings = []
    for position, (name, (spec, samples)) in enumerate(named.items()):
        earlier = list(named.items())[:position]
        overlaps = {other: check_overlap(known, samples) for other, (_, known) in earlier}
        shared = {other: overlap["overlap"] for other, overlap in overlaps.items()}
        described[name] = {
            "spec": spec,
            "windows": len(samples),
            "tokens": samples.tokens.numel(),
            "hash": samples.hash,
            "overlap": shared,
        }
        for other, part in shared.items():
            if part and name == "report" and other in ("search", "held out"):
                raise InputError(
                    f"evaluation text {spec}: {part:.1%} of its windows are in the search's text {config.search_text}; "
                    "results must be reported on text that the search never saw"
                )
            if part and not (name.startswith("calibration") and other.startswith("calibration")):
                run = overlaps[other]["ngram"]
                warnings.append(f"{part:.1%} of the {name} windows share {run} tokens or more with the {other} text")
    return described, tuple(warnings)


def _rows(windows: Samples, rows: list[int]) -> Samples:
    return Samples(windows.tokens[rows], tuple(windows.source[row] for row in rows))
