"""Throughput of a causal language model: prefill of a prompt, and decoding with a KV cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.common.progress import track
from pruneengine.model.decoder import causal_parts, inference


@dataclass(frozen=True)
class SpeedResult:
    """Median throughput in tokens per second: prefill of the prompt, and decoding with a KV cache."""

    prefill: float
    decode: float
    prompt_tokens: int
    new_tokens: int
    repeats: int
    dtype: str
    device: str


def measure_speed(
    model: nn.Module, prompt_tokens: int = 128, new_tokens: int = 32, repeats: int = 3, batch_size: int = 1
) -> SpeedResult:
    """Measure prefill and decode throughput of greedy generation on random tokens, after one warm-up run.

    Args:
        model: a transformers causal language model.
        prompt_tokens: tokens per sequence that are read at once.
        new_tokens: decode steps timed after the prompt.
        repeats: timed runs; the result is their median.
        batch_size: sequences at once; throughput counts the tokens of all of them.
    """
    return _measure([model], prompt_tokens, new_tokens, repeats, batch_size)[0]


def measure_speed_pair(
    dense: nn.Module,
    pruned: nn.Module,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    repeats: int = 3,
    batch_size: int = 1,
) -> tuple[SpeedResult, SpeedResult]:
    """Measure the speed of two models as :func:`measure_speed`, run by run in turn, so load slows both alike."""
    first, second = _measure([dense, pruned], prompt_tokens, new_tokens, repeats, batch_size)
    return first, second


def _greedy(model: nn.Module, ids: Tensor, new_tokens: int) -> Iterator[Tensor]:
    """Yield logits ``[B, V]`` after the prompt ``ids`` ``[B, T]``, then after each of ``new_tokens`` greedy tokens."""
    body, head, options = causal_parts(model)
    cache = None
    for _ in range(new_tokens + 1):
        output = body(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = head(output.last_hidden_state[:, -1]) * options["scale"]
        if softcap := options["softcap"]:
            logits = softcap * torch.tanh(logits / softcap)
        yield logits
        ids = logits.argmax(-1, keepdim=True)


def _measure(
    models: Sequence[nn.Module], prompt_tokens: int, new_tokens: int, repeats: int, batch_size: int
) -> list[SpeedResult]:
    counts = {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "batch_size": batch_size,
    }
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name}={value}: expected at least 1")
    vocabulary = min(causal_parts(model)[1].weight.shape[0] for model in models)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(vocabulary, (batch_size, prompt_tokens), generator=generator)
    times: list[list[tuple[float, float]]] = [[] for _ in models]
    for _ in track(range(repeats + 1), "speed"):
        for model, runs in zip(models, times, strict=True):
            runs.append(_time_once(model, prompt, new_tokens))
    results = []
    for model, runs in zip(models, times, strict=True):
        prefill, decode = (statistics.median(part) for part in zip(*runs[1:], strict=True))
        weight = next(model.parameters())
        results.append(
            SpeedResult(
                prefill=prompt.numel() / prefill,
                decode=batch_size * new_tokens / decode,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                repeats=repeats,
                dtype=str(weight.dtype).removeprefix("torch."),
                device=str(weight.device),
            )
        )
    return results


def _time_once(model: nn.Module, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    device = next(model.parameters()).device
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with inference(model):
        ids = prompt.to(device)
        wait()
        start = time.perf_counter()
        steps = _greedy(model, ids, new_tokens)
        next(steps)
        wait()
        prefilled = time.perf_counter()
        for _ in steps:
            pass
        wait()
    return prefilled - start, time.perf_counter() - prefilled
