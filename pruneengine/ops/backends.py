"""Backends of the ops: those available here, the one asked for, and the default for each device.

No GPU, driver or Triton is touched before the first call.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pruneengine.ops import extension, reference

BACKENDS = ("cuda", "cpp", "triton", "reference")
TRITON_MODULES = {
    "activation_stats": "activation_stats",
    "gate_scores": "gate_scores",
    "weight_scores": "weight_scores",
    "taylor_scores": "taylor_scores",
    "taylor_scores_outer": "taylor_scores_outer",
    "block_moments": "block_moments",
    "kth_value": "select",
    "select_mask": "select",
    "kth_value_global": "select_global",
    "select_mask_global": "select_global",
    "nm_mask": "nm_mask",
    "nm_apply": "nm_mask",
    "quantile_codes": "quantile_codes",
    "masked_copy": "masked_copy",
}
_forced: str | None = None


def _why_not(backend: str) -> str | None:
    if backend == "cpp":
        return extension.why_not_cpp()
    if backend == "cuda":
        return extension.why_not_cuda()
    if backend == "triton":
        return _why_not_triton()
    return None


def _why_not_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'pruneengine[triton]'"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "torch sees no GPU, and TRITON_INTERPRET is not 1"
    return None


def available_backends() -> dict[str, str]:
    """Return every backend by name: "available", or the reason why it is not."""
    return {backend: _why_not(backend) or "available" for backend in BACKENDS}


class use_backend:  # noqa: N801 - a verb, used as a call or in a with statement
    """Choice of one backend for every op, until the end of the ``with`` block or, as a plain call, from here on.

    Args:
        name: "cuda", "cpp", "triton", "reference", or "auto" for the default order.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend is missing here; the message has the reason.
    """

    def __init__(self, name: str) -> None:
        global _forced
        if name not in (*BACKENDS, "auto"):
            raise ValueError(f"backend {name!r}: expected one of {', '.join((*BACKENDS, 'auto'))}")
        reason = None if name == "auto" else _why_not(name)
        if reason:
            raise RuntimeError(f"backend {name!r} is not available: {reason}")
        self._before = _forced
        _forced = None if name == "auto" else name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _forced
        _forced = self._before


def _why_unfit(backend: str, op: str, on_cuda: bool) -> str | None:
    """Return None if the backend can run the op on a tensor of the device, else the reason."""
    if backend == "cpp" and on_cuda:
        return "it takes CPU tensors"
    if backend == "cuda" and not on_cuda:
        return "it takes CUDA tensors"
    if backend == "cuda" and op not in extension.CUDA_OPS:
        return f"it has only {', '.join(extension.CUDA_OPS)}"
    if backend == "triton" and op not in TRITON_MODULES:
        return f"it has only {', '.join(TRITON_MODULES)}"
    if backend == "triton" and not on_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return "it takes CPU tensors only where TRITON_INTERPRET is 1"
    return None


@functools.cache
def _function(backend: str, op: str) -> Callable[..., object]:
    if backend == "reference":
        return getattr(reference, op)
    if backend == "triton":
        return getattr(importlib.import_module(f"pruneengine.kernels.{TRITON_MODULES[op]}"), op)
    return getattr(extension, op)


@functools.cache
def _default(op: str, on_cuda: bool) -> str:
    order = ("cuda", "triton", "reference") if on_cuda else ("cpp", "reference")
    return next(name for name in order if not _why_unfit(name, op, on_cuda) and not _why_not(name))


def first_tensor(arguments: Sequence[object]) -> Tensor | None:
    """Return the tensor whose device decides: the first argument, or the first of a sequence; None if that is empty."""
    first: Any = arguments[0]
    return first if isinstance(first, Tensor) else next(iter(first), None)


def run(op: str, *arguments: object) -> object:
    """Run the op on the backend for its first argument's device; on an empty tensor, run the reference.

    Raises:
        ValueError: the backend asked for with :class:`use_backend` cannot run this op on this device.
    """
    tensor = first_tensor(arguments)
    assert tensor is not None  # no op takes an empty sequence
    backend = _forced or _default(op, tensor.is_cuda)
    reason = _why_unfit(backend, op, tensor.is_cuda)
    if reason:
        raise ValueError(f"{op} on {tensor.device}: backend {backend!r} cannot run it, {reason}")
    function = _function("reference" if arguments[0] is tensor and tensor.numel() == 0 else backend, op)
    if not tensor.is_cuda:
        return function(*arguments)
    with torch.cuda.device(tensor.device):
        return function(*arguments)
