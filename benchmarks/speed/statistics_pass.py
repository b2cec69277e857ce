"""Cost of one pass for statistics on SmolLM2-135M, 32 samples of 128 tokens, against plain passes.

``frozen backward`` is the loss a user computes and a backward pass with frozen weights, down to the input of the first
layer: the least that gradients of activations can cost. ``frozen backward, chunked loss`` is the same with
pruneengine's loss, so that it shows the cost of the hooks alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

import pruneengine
from benchmarks.common.models import smollm2
from benchmarks.speed.compare import Target
from pruneengine.bench.environment import versions
from pruneengine.bench.record import GateError, Row, Setting
from pruneengine.bench.timing import interleave
from pruneengine.model import get_linear
from pruneengine.model.decoder import causal_parts
from pruneengine.model.loss import token_nll_backward

BASE = "frozen backward"
TARGETS = (
    Target("pass", "statistics", "frozen backward", 1.15),
    Target("pass", "statistics", "full backward", 0.5),
)
QUANTITIES = ("signed", "squares", "sum")
SAMPLES, LENGTH = 32, 128
BATCH_SIZES = (8,)


def measure(rounds: int, threads: int) -> list[Row]:
    """Gate, then rows of the seconds of each pass for each batch size."""
    torch.set_num_threads(threads)
    model, tokenizer = smollm2()
    tokens = pruneengine.load_samples("builtin", tokenizer, SAMPLES, LENGTH, model=model).tokens
    check_statistics(model, tokens[:2])
    setting, rows = Setting.here("statistics", threads), []
    for size in BATCH_SIZES:
        for run in PASSES.values():
            _timed(run, model, tokens[:size], size)()
        timed = {name: _timed(run, model, tokens, size) for name, run in PASSES.items()}
        # A whole pass is too long to be thrown away: one batch has warmed each up.
        for name, measured in interleave(timed, rounds, warmup=0).items():
            case = f"SmolLM2-135M {SAMPLES}x{LENGTH} batch {size}"
            rows.append(setting.row(case, name, "pass", "s", measured["pass"], versions("torch", "transformers")))
    return rows


def check_statistics(model: nn.Module, tokens: Tensor) -> None:
    """The statistics of int64 ``tokens [N, L]`` are those of autograd with weight gradients; else GateError."""
    structure = pruneengine.find_groups(model)
    found = pruneengine.calibrate(model, tokens, QUANTITIES)
    model.requires_grad_(True)
    inputs: dict[str, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for site in structure.sites:
            hook = lambda _module, args, name=site.name: inputs.update({name: args[0].detach()[0]})  # noqa: E731
            hooks.enter_context(get_linear(model, site.module).register_forward_pre_hook(hook))
        for number, sample in enumerate(tokens):
            # float32 cross-entropy over a large vocabulary is what would limit the comparison.
            logits = model(input_ids=sample[None], use_cache=False).logits[0, :-1].double()
            functional.cross_entropy(logits, sample[1:]).backward()
            for name, x in inputs.items():
                _compare(f"sum of {name}", found.get("sum", name)[number], x)
                _compare(f"squares of {name}", found.get("squares", name)[number], x.square())
            for member in (member for group in structure.groups for member in group.members):
                weight = get_linear(model, member.module).weight
                terms = (weight * weight.grad).detach()
                terms = terms.T if member.axis == 0 else terms
                _compare(f"signed of {member.module}", found.get("signed", member.module)[number], terms)
            model.zero_grad()


def _compare(what: str, found: Tensor, terms: Tensor) -> None:
    """``found [C]`` is the sum over rows of ``terms [R, C]``, to a small part of the largest sum of magnitudes."""
    error = float((found - terms.sum(0)).abs().max() / terms.abs().sum(0).max())
    if not error < 1e-4:
        raise GateError(f"{what} is off by {error:.1e} of the magnitudes that it sums")


def statistics(model: nn.Module, batches: list[Tensor]) -> None:
    pruneengine.calibrate(model, torch.cat(batches), QUANTITIES, batch_size=len(batches[0]))


def frozen_backward(model: nn.Module, batches: Iterable[Tensor]) -> None:
    for tokens in _frozen(model, batches):
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()


def frozen_backward_chunked(model: nn.Module, batches: Iterable[Tensor]) -> None:
    body, head, options = causal_parts(model)
    for tokens in _frozen(model, batches):
        predicting = body(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        _, gradient = token_nll_backward(predicting.detach(), head, tokens[:, 1:], 1 / (tokens.shape[1] - 1), **options)
        predicting.backward(gradient)


def full_backward(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Gradients of all weights, accumulated over the batches as LLM-Pruner does."""
    model.requires_grad_(True)
    for tokens in batches:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()


@torch.no_grad()
def forward(model: nn.Module, batches: Iterable[Tensor]) -> None:
    for tokens in batches:
        model(input_ids=tokens, use_cache=False)


def _frozen(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    model.requires_grad_(False)
    hook = model.get_input_embeddings().register_forward_hook(lambda _module, _args, out: out.requires_grad_(True))
    yield from batches
    hook.remove()


PASSES = {
    "statistics": statistics,
    "frozen backward": frozen_backward,
    "frozen backward, chunked loss": frozen_backward_chunked,
    "full backward": full_backward,
    "forward": forward,
}


def _timed(run: Callable, model: nn.Module, tokens: Tensor, size: int) -> Callable[[], dict[str, float]]:
    def timed() -> dict[str, float]:
        batches = list(tokens.split(size))
        start = time.perf_counter()
        run(model, batches)
        seconds = time.perf_counter() - start
        model.zero_grad(set_to_none=True)
        return {"pass": seconds}

    return timed
