"""Token rows of a text: instructions with masked prompts, plain text packed into windows.

An instruction becomes Stanford Alpaca's prompt (:func:`pruneengine.data.rows.alpaca_prompt`), the answer and the
tokenizer's EOS. The prompt is read, not trained on. Tokens beyond the cutoff are cut at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pruneengine.common.errors import InputError
from pruneengine.common.progress import track
from pruneengine.data.sources import instructions
from pruneengine.data.windows import all_windows, as_samples, load_samples, parse_spec
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.rows import TokenRows


def load_rows(config: RecoverConfig, tokenizer: Any, model: nn.Module | None = None) -> TokenRows:
    """Load all rows of ``config.data``, training and validation together.

    Args:
        config: its ``data``, ``rows``, ``cutoff``, ``seed`` and numbers of validation rows are read.
        tokenizer: a transformers tokenizer.
        model: model that the source ``self`` samples from.

    Raises:
        ValueError: no rows, unknown columns, too little text, no answer that fits the cutoff, or no rows left to train
            on after validation.
        OSError, ImportError: as :func:`pruneengine.data.sources.documents`.
    """
    parts = []
    for name, count in parse_spec(config.data, config.rows):
        pairs = None if name == "self" else instructions(name)
        if pairs is not None:
            parts.append(instruction_rows(name, pairs, tokenizer, config.cutoff, count, config.seed))
        elif name != "self" and count is None:
            parts.append(as_rows(all_windows(name, tokenizer, config.cutoff)))
        else:
            parts.append(as_rows(load_samples(name, tokenizer, count, config.cutoff, config.seed, model=model)))
    tokens = tuple(row for part in parts for row in part.tokens)
    masked = tuple(count for part in parts for count in part.masked)
    config.validation_rows(len(tokens))  # refuses a split that leaves nothing to train on
    return TokenRows(tokens, masked, {"spec": config.data, "sources": [part.report for part in parts]})


def as_rows(samples: Any) -> TokenRows:
    """Return rows unchanged, or token windows (:func:`as_samples`) as rows predicted from their second token."""
    if isinstance(samples, TokenRows):
        return samples
    windows = as_samples(samples)
    report = windows.report.get("sources", [{"source": windows.source[0]}])[0] | {"rows": len(windows)}
    return TokenRows(tuple(windows.tokens), (1,) * len(windows), report)


def instruction_rows(
    name: str, pairs: Sequence[tuple[str, str]], tokenizer: Any, cutoff: int, count: int | None = None, seed: int = 0
) -> TokenRows:
    """Tokenise prompts and answers as rows: ``count`` random ones, or all.

    A tokenizer may join prompt and answer at their border. So the mask ends at the first token where the tokens of both
    together differ from those of the prompt alone.

    Raises:
        ValueError: fewer than ``count`` rows, or no row whose prompt leaves room for an answer in ``cutoff`` tokens.
    """
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist() if count else None
    tokens, masked, cut, dropped = [], [], 0, 0
    for index in track(order or range(len(pairs)), f"tokenise {name}"):
        prompt, answer = pairs[index]
        ids = tokenizer(prompt + answer, verbose=False)["input_ids"]
        border = _common(ids, tokenizer(prompt, verbose=False)["input_ids"])
        if tokenizer.eos_token_id is not None and ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
        cut += len(ids) > cutoff
        ids, border = ids[:cutoff], max(1, border)
        if border >= len(ids):
            dropped += 1
            continue
        tokens.append(torch.tensor(ids, dtype=torch.int64))
        masked.append(border)
        if len(tokens) == count:
            break
    if len(tokens) < (count or 1):
        raise InputError(
            f"{name}: {len(tokens)} rows with an answer within {cutoff} tokens, {count or 1} needed "
            f"({len(pairs)} rows, {dropped} without an answer or whose prompt fills the cutoff)"
        )
    report = {"source": name, "rows": len(tokens), "rows_cut": cut, "rows_without_answer": dropped}
    return TokenRows(tuple(tokens), tuple(masked), report)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
