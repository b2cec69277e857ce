"""Perplexity, paired loss difference and size of a model, and the dtype to measure in."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError, NotFiniteError
from pruneengine.common.progress import track
from pruneengine.data.samples import Samples, as_samples
from pruneengine.model import Structure
from pruneengine.model.checks import check_positions
from pruneengine.model.decoder import autocast, causal_parts, hidden_states, inference
from pruneengine.model.loss import token_nll
from pruneengine.structured.plan import Plan


@dataclass(frozen=True, eq=False)
class PerplexityResult:
    """Perplexity of one model on one set of windows.

    Attributes:
        perplexity: ``exp(nll)``.
        nll: mean over all predicted tokens, nats.
        tokens: predicted tokens, ``N * (L - 1)``.
        per_window: mean nll of each window, float64 ``[N]``.
        dtype: dtype of the forward computation, e.g. ``"bfloat16"``.
        seconds: wall-clock time.
        samples: hash of the windows, :attr:`Samples.hash`.
    """

    perplexity: float
    nll: float
    tokens: int
    per_window: Tensor
    dtype: str
    seconds: float
    samples: str


class PairedDifference(NamedTuple):
    """Mean of (pruned - dense) nll per window, in nats, and its standard error."""

    mean: float
    standard_error: float


class ModelSize(NamedTuple):
    """Number of parameters and their bytes; a tied parameter counts once."""

    parameters: int
    bytes: int


def perplexity(
    model: nn.Module, samples: Samples | Tensor, batch_size: int = 4, dtype: torch.dtype | None = None
) -> PerplexityResult:
    """Measure perplexity: exp of the mean nll of tokens 1..L-1 of every window.

    Each token is predicted from the tokens before it in its window. The decoder body runs on whole batches; the logits
    exist only a chunk at a time.

    Args:
        model: a transformers causal language model; its training mode is unchanged afterwards.
        samples: the windows, or token ids int64 ``[N, L]``.
        batch_size: windows per forward pass.
        dtype: bfloat16 or float16 to run a float32 model under autocast; None or the model's own dtype for no cast.

    Raises:
        ValueError: a bad argument, token ids outside the vocabulary, windows longer than the learned positions, or a
            model whose logits are not its head's.
        FloatingPointError: a window's loss is not finite (the message names the first), or the perplexity overflows.
    """
    samples = as_samples(samples)
    _, head, options = causal_parts(model)
    weight = next(model.parameters())
    cast = autocast(weight, dtype)
    if not len(samples) or samples.tokens.shape[1] < 2:
        raise InputError(f"samples {tuple(samples.tokens.shape)}: expected at least one window of two tokens")
    check_positions(getattr(model, "config", None), {"windows": samples.tokens.shape[1]})
    if samples.tokens.max() >= head.weight.shape[0]:
        raise InputError(f"token id {int(samples.tokens.max())}: the model's vocabulary is {head.weight.shape[0]}")
    windows: list[Tensor] = []
    start = time.perf_counter()
    with inference(model), cast:
        _check_head(model, samples.tokens[:1, :8].to(weight.device))
        batches = list(samples.batches(batch_size))
        for batch in track(batches, "perplexity"):
            ids = batch.to(weight.device)
            nll = token_nll(hidden_states(model, ids)[:, :-1], head, ids[:, 1:], **options).double().mean(1).cpu()
            _require_finite(nll, batch_size * len(windows), samples)
            windows.append(nll)
    per_window = torch.cat(windows)
    mean = float(per_window.mean())
    if mean > math.log(torch.finfo(torch.float64).max):
        raise NotFiniteError(f"perplexity overflows: mean nll {mean:.6g} nats")
    return PerplexityResult(
        perplexity=math.exp(mean),
        nll=mean,
        tokens=len(samples) * (samples.tokens.shape[1] - 1),
        per_window=per_window,
        dtype=str(dtype or weight.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - start,
        samples=samples.hash,
    )


def paired_difference(dense: PerplexityResult, pruned: PerplexityResult) -> PairedDifference:
    """Return the loss that pruning costs on the same windows; the windows' own difficulty cancels.

    Raises:
        ValueError: results of different windows, or of fewer than two.
    """
    if dense.samples != pruned.samples:
        raise InputError(f"results of different windows: {dense.samples[:12]} and {pruned.samples[:12]}")
    count = len(dense.per_window)
    if count < 2:
        raise InputError(f"{count} window: a standard error needs at least 2")
    difference = pruned.per_window - dense.per_window
    return PairedDifference(float(difference.mean()), float(difference.std() / math.sqrt(count)))


def model_size(model: nn.Module) -> ModelSize:
    """Return the number of parameters and their bytes."""
    parameters = list(model.parameters())
    return ModelSize(sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters))


def kv_cache_bytes(structure: Structure, itemsize: int, plan: Plan | None = None) -> int:
    """Return the bytes by which the cache of keys and values grows with every token of a sequence.

    Sum over the layers of ``2 * key-value heads * head_dim * itemsize``. A sliding window bounds the whole cache, not
    this growth.

    Args:
        structure: structure of the model, of any widths.
        itemsize: bytes of one entry, e.g. 2 for a cache in bfloat16.
        plan: plan for that model, for the bytes after pruning; None for the model itself.
    """
    groups = structure.of_kind(("heads",))
    heads = sum(group.units if plan is None else len(plan.keep.get(group.name, ())) for group in groups)
    return 2 * heads * structure.head_dim * itemsize


def best_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """Return bfloat16 if the device multiplies it in hardware (a GPU that says so, AVX512-BF16, AMX), else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = device.type == "cpu" and bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())
    return torch.bfloat16 if supported else torch.float32


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def _check_head(model: nn.Module, ids: Tensor) -> None:
    """Raise ValueError if the model changes its head's logits in a way that :func:`logit_options` does not know."""
    _, head, options = causal_parts(model)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    actual = token_nll(hidden_states(model, ids)[:, :-1], head, ids[:, 1:], **options).flatten()
    # Losses that are not finite are errors of the windows that have them.
    both = actual.isfinite() & expected.isfinite()
    if not torch.allclose(actual[both], expected[both], rtol=1e-2, atol=1e-2):
        raise InputError(
            f"{type(model).__name__}: loss {actual.mean():.4f} from body and head, "
            f"{expected.mean():.4f} from its logits"
        )


def _require_finite(nll: Tensor, offset: int, samples: Samples) -> None:
    bad = (~nll.isfinite()).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        window = offset + first
        raise NotFiniteError(f"window {window} of {len(samples)} ({samples.source[window]}): nll is {nll[first]:.6g}")
