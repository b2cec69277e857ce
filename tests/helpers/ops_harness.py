"""Harness of the tests of ops: backends by name, poisoned memory, random tensors and comparison with float64."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.ops import backends, extension

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((37, 1001), (1, 1), (3, 7))
OPS = set(ops.__all__) - {"available_backends", "use_backend", "compact_bytes", "histogram_edges", "MOMENTS"}


def backend_params(op: str) -> list:
    """Return the backends that have the op; ``cuda`` runs where there is a GPU."""
    on_gpu = [pytest.mark.gpu] if torch.cuda.is_available() else []  # elsewhere Triton is interpreted
    triton = [pytest.param("triton", marks=on_gpu)] if op in backends.TRITON_MODULES else []
    cuda = [pytest.param("cuda", marks=pytest.mark.gpu)] if op in extension.CUDA_OPS else []
    return ["reference", "cpp", *triton, *cuda]


@contextlib.contextmanager
def running(backend: str):
    """Yield the device to test on, with the backend forced; skip with the reason where the backend is missing."""
    reason = ops.available_backends()[backend]
    if reason != "available":
        pytest.skip(f"{backend}: {reason}")
    device = "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"
    with ops.use_backend(backend):
        yield device


@contextlib.contextmanager
def threads(count: int):
    """Set the number of CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh outputs with NaN or garbage, so that an element that nobody writes shows."""
    empty = torch.empty

    def poisoned_empty(*args: object, **kwargs: object) -> Tensor:
        tensor = empty(*args, **kwargs)
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        elif tensor.device.type != "meta":
            tensor.view(torch.uint8).fill_(1)
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned_empty)


def moved(tensor: Tensor, device: str) -> Tensor:
    """Return the tensor on the device with its strides: ``to`` would pack a slice."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device).copy_(tensor)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def double(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def assert_near(got: Tensor, expected: np.ndarray, size: np.ndarray | None = None, relative: float = 2e-5) -> None:
    """Compare within ``relative`` of the sum of the magnitudes added up (a signed sum may cancel to nothing)."""
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    scale = np.abs(expected) if size is None else size
    assert (np.abs(double(got) - expected) <= relative * scale + 1e-30).all()


def stable_smallest(scores: Tensor, k: int) -> np.ndarray:
    values = double(scores) + 0.0  # -0.0 becomes 0.0
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(values, axis=1, kind="stable")[:, :k], True, axis=1)
    return mask
