"""Body and head of a transformers causal language model, and the contexts it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.model.loss import LogitOptions, logit_options

# The largest block whose release still raises glibc's threshold (mallopt(3), M_MMAP_THRESHOLD): just below 32 MiB.
WARM_UP_BYTES = 32 * 2**20 - 2**16


def causal_parts(model: nn.Module) -> tuple[nn.Module, nn.Linear, LogitOptions]:
    """Return body, head and logit options of a model.

    Returns:
        ``(body, head, options)``: ``body(input_ids=...)`` gives ``last_hidden_state`` ``[B, T, H]``, ``head`` is the
        linear layer to logits, ``options`` are keyword arguments of :func:`pruneengine.model.loss.token_nll`.

    Raises:
        TypeError: not a transformers causal language model.
    """
    causal: Any = model
    head = causal.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    # get_decoder looks through a LoRA wrapper, where base_model is only the wrapper's inside.
    body = causal.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "base_model", model)
    if head is None or body is model:
        raise InputTypeError(f"model: {type(model).__name__}, expected a transformers causal language model")
    return body, head, logit_options(model.config)


def hidden_states(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the hidden states that the head reads, ``[B, T, H]``, with a graph where gradients are enabled.

    The one way of a whole batch through the body. It is the model's own forward and not the layer runner, because
    training runs through it (gradient checkpointing, adapters), because families without an entry have no other, and
    because the runner asks for the arguments of its layers by a forward pass besides.

    Args:
        model: a transformers causal language model.
        tokens: token ids, int64 ``[B, T]``, on the model's device.

    Raises:
        TypeError: as :func:`causal_parts`.
    """
    body, _head, _options = causal_parts(model)
    return body(input_ids=tokens, use_cache=False).last_hidden_state


def keep_freed_memory() -> None:
    """Keep up to 64 MiB of freed memory in the process for the next activations.

    By default glibc returns blocks above 128 KB to the system when they are freed, so every layer page-faults its
    activations again (about 10% of a forward pass). Allocating and freeing one block of just under 32 MiB raises that
    threshold to its maximum. The block is never written, so it costs no memory; other C libraries ignore it.
    """
    torch.empty(WARM_UP_BYTES, dtype=torch.uint8)


def autocast(weight: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return the context in which a model computes in another dtype than its own.

    Args:
        weight: one of the model's weights, for its dtype and device.
        dtype: bfloat16 or float16 to run a float32 model under autocast; None or the model's own dtype for no cast.

    Raises:
        ValueError: another dtype than the model's, and not half precision of float32.
    """
    if dtype in (None, weight.dtype):
        return nullcontext()
    if weight.dtype != torch.float32 or dtype not in (torch.bfloat16, torch.float16):
        raise InputError(
            f"dtype={dtype} for a model in {weight.dtype}: expected {weight.dtype}; only a float32 model computes in "
            "another dtype, in bfloat16 or float16"
        )
    return torch.autocast(weight.device.type, dtype)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode without gradients within the context; afterwards the training mode is back."""
    keep_freed_memory()
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode with weights that ask for no gradient within the context; afterwards both are back."""
    keep_freed_memory()
    training = model.training
    required = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, flag in required:
            parameter.requires_grad_(flag)
