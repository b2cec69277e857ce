"""Token windows from text: calibration samples and evaluation windows.

A spec names the text: one source of :func:`pruneengine.data.sources.documents`, ``self`` (text sampled from the model),
or a mix with sample counts, ``"c4:64,alpaca.jsonl:64"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.common.progress import track
from pruneengine.data.samples import Samples, as_samples, check_overlap
from pruneengine.data.sources import ROLES, documents
from pruneengine.data.specs import check_spec, parse_spec, refuse_own_samples

__all__ = [
    "Samples",
    "all_windows",
    "as_samples",
    "check_overlap",
    "check_spec",
    "evaluation_windows",
    "load_samples",
    "parse_spec",
]

# Windows are drawn from the first documents, in random order, that hold this many times the tokens asked for:
# enough to mix documents, without reading a whole web crawl.
POOL = 4
GENERATE_BATCH = 16


def load_samples(
    spec: str,
    tokenizer: Any,
    nsamples: int | None,
    seqlen: int,
    seed: int = 0,
    *,
    pack: bool = True,
    model: nn.Module | None = None,
    role: str = "calibration",
) -> Samples:
    """Load samples of exactly ``seqlen`` tokens, without special tokens added except those named here.

    Args:
        spec: name of the text; a mix is composed in the order written.
        tokenizer: a transformers tokenizer.
        nsamples: number of samples; None takes the counts of the spec, or with ``role="evaluation"`` all windows in
            order.
        seqlen: tokens per sample, at least 2.
        seed: random seed of the choice; the same for every source of a mix.
        pack: True joins documents (in random order, the tokenizer's EOS between them), cuts non-overlapping windows
            and draws ``nsamples`` of them without repetition. False takes one random crop from each of ``nsamples``
            random documents that are long enough (LLM-Pruner's sampling).
        model: the causal language model that ``self`` samples from, at temperature 1 and without top-k. A sample is
            its BOS (or a random token) and ``seqlen - 1`` sampled tokens; text goes on after a sampled EOS.
        role: ``calibration`` or ``evaluation``, for the split of a hub data set.

    Raises:
        ValueError: a bad argument, or too little text; the message gives the number of windows and the number needed.
    """
    _check_window(seqlen)
    if role not in ROLES:
        raise InputError(f"role={role!r}: expected one of {', '.join(ROLES)}")
    parts = parse_spec(spec, nsamples)
    if not (role == "evaluation" and pack) and any(count is None for _, count in parts):
        raise InputError(f"nsamples=None for {spec!r}: expected a number (all windows only for packed evaluation text)")
    tokens, reports = [], []
    for name, count in parts:
        if name == "self":
            windows, report = _generate(model, tokenizer, count, seqlen, seed)
        else:
            texts = documents(name, role, tokenizer)
            if pack:
                windows, report = _pack(name, texts, tokenizer, count, seqlen, seed)
            else:
                assert count is not None  # without a count only packed text is read
                windows, report = _crop(name, texts, tokenizer, count, seqlen, seed)
        tokens.append(windows)
        reports.append({"source": name, **report})
    settings = {"spec": spec, "role": role, "seqlen": seqlen, "seed": seed, "pack": pack}
    return _compose(tokens, reports, settings)


def all_windows(name: str, tokenizer: Any, seqlen: int) -> Samples:
    """Return every window of one source's calibration text, in order, with the tokenizer's EOS between documents.

    Raises:
        ValueError: a bad argument, or too little text for one window.
    """
    _check_window(seqlen)
    windows, report = _pack(name, documents(name, tokenizer=tokenizer), tokenizer, None, seqlen, seed=0)
    return _compose([windows], [{"source": name, **report}], {"spec": name, "role": "calibration", "seqlen": seqlen})


def evaluation_windows(spec: str, tokenizer: Any, seqlen: int, limit: int | None = None) -> Samples:
    """Return the standard perplexity windows: documents joined by blank lines, one token stream, no BOS, cut in order.

    The tail shorter than ``seqlen`` is dropped and counted in the report. This is GPTQ's WikiText-2 protocol except
    that no BOS is added.

    Args:
        spec: name of the text (evaluation split of a hub data set); ``self`` is not evaluation text.
        tokenizer: a transformers tokenizer.
        seqlen: tokens per window, at least 2.
        limit: number of first windows to take; None for all.

    Raises:
        ValueError: a bad argument, or fewer than ``limit`` windows.
    """
    _check_window(seqlen)
    tokens, reports = [], []
    for name, count in parse_spec(spec, limit):
        if name == "self":
            refuse_own_samples("evaluation")
        texts = documents(name, "evaluation", tokenizer)
        stream = torch.tensor(_encode(tokenizer, "\n\n".join(texts)), dtype=torch.int64)
        pool = _cut(stream, seqlen)
        chosen = pool if count is None else pool[:count]
        _require(name, len(pool), 1 if count is None else count, f"windows of {seqlen} tokens", len(stream), len(texts))
        tokens.append(chosen)
        reports.append(
            {"source": name, "documents": len(texts), **_count_tokens(stream, pool, chosen), "windows": len(pool)}
        )
    return _compose(tokens, reports, {"spec": spec, "role": "evaluation", "seqlen": seqlen})


def _check_window(seqlen: int) -> None:
    if seqlen < 2:
        raise InputError(f"seqlen={seqlen}: expected at least 2 tokens")


def _compose(tokens: list[Tensor], reports: list[dict[str, Any]], settings: dict[str, Any]) -> Samples:
    names = [report["source"] for report, windows in zip(reports, tokens, strict=True) for _ in range(len(windows))]
    return Samples(torch.cat(tokens), tuple(names), {**settings, "sources": reports})


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _cut(stream: Tensor, seqlen: int) -> Tensor:
    return stream[: len(stream) // seqlen * seqlen].view(-1, seqlen)


def _count_tokens(stream: Tensor, pool: Tensor, chosen: Tensor) -> dict[str, int]:
    return {
        "tokens_read": len(stream),
        "tokens_used": chosen.numel(),
        "tokens_left": len(stream) - chosen.numel(),
        "tokens_tail": len(stream) - pool.numel(),
    }


def _require(name: str, count: int, needed: int, what: str, tokens: int, texts: int) -> None:
    if count < needed:
        raise InputError(f"{name}: {count} {what}, {needed} needed ({tokens} tokens in {texts} documents)")


def _pack(
    name: str, texts: Sequence[str], tokenizer: Any, count: int | None, seqlen: int, seed: int
) -> tuple[Tensor, dict[str, int]]:
    generator = torch.Generator().manual_seed(seed)
    order = range(len(texts)) if count is None else torch.randperm(len(texts), generator=generator).tolist()
    enough = math.inf if count is None else POOL * count * seqlen
    ids: list[int] = []
    used = empty = 0
    for index in track(order, f"tokenise {name}"):
        if not texts[index].strip():
            empty += 1
            continue
        if ids and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        ids += _encode(tokenizer, texts[index])
        used += 1
        if len(ids) >= enough:
            break
    stream = torch.tensor(ids, dtype=torch.int64)
    pool = _cut(stream, seqlen)
    _require(name, len(pool), 1 if count is None else count, f"windows of {seqlen} tokens", len(stream), used)
    chosen = pool if count is None else pool[torch.randperm(len(pool), generator=generator)[:count]]
    return chosen, {
        "documents": len(texts),
        "documents_read": used,
        "documents_empty": empty,
        "documents_unread": len(texts) - used - empty,
        **_count_tokens(stream, pool, chosen),
        "windows": len(pool),
    }


def _crop(
    name: str, texts: Sequence[str], tokenizer: Any, count: int, seqlen: int, seed: int
) -> tuple[Tensor, dict[str, int]]:
    generator = torch.Generator().manual_seed(seed)
    crops: list[list[int]] = []
    read = short = tokens = 0
    for index in track(torch.randperm(len(texts), generator=generator).tolist(), f"tokenise {name}"):
        ids = _encode(tokenizer, texts[index])
        read += 1
        tokens += len(ids)
        if len(ids) < seqlen:
            short += 1
            continue
        start = int(torch.randint(len(ids) - seqlen + 1, (), generator=generator))
        crops.append(ids[start : start + seqlen])
        if len(crops) == count:
            break
    _require(name, len(crops), count, f"documents of at least {seqlen} tokens", tokens, read)
    return torch.tensor(crops, dtype=torch.int64), {
        "documents": len(texts),
        "documents_read": read,
        "documents_short": short,
        "documents_unread": len(texts) - read,
        "tokens_read": tokens,
        "tokens_used": count * seqlen,
        "tokens_left": tokens - count * seqlen,
    }


@torch.no_grad()
def _generate(
    model: nn.Module | None, tokenizer: Any, count: int | None, seqlen: int, seed: int
) -> tuple[Tensor, dict[str, int]]:
    if model is None or count is None:
        raise InputError("text source 'self': expected a model to sample from and a number of samples")
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    vocabulary = len(tokenizer)
    if tokenizer.bos_token_id is not None:
        first = torch.full((count, 1), tokenizer.bos_token_id)
    else:
        ordinary = torch.tensor(sorted(set(range(vocabulary)) - set(tokenizer.all_special_ids)))
        first = ordinary[torch.randint(len(ordinary), (count, 1), generator=generator)]
    training = model.training
    model.eval()
    try:
        rows = []
        for start in track(first.split(GENERATE_BATCH), "sample from the model"):
            row, cache = [start], None
            for _ in range(seqlen - 1):
                output = model(input_ids=row[-1].to(device), past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                chance = output.logits[:, -1, :vocabulary].float().softmax(-1).cpu()
                row.append(torch.multinomial(chance, 1, generator=generator))
            rows.append(torch.cat(row, 1))
    finally:
        model.train(training)
    return torch.cat(rows), {"tokens_used": count * seqlen, "tokens_left": 0}
