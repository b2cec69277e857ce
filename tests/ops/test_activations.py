"""Ops on activations, on every backend, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pruneengine import ops
from tests.helpers.ops_harness import (
    DTYPES,
    assert_near,
    backend_params,
    double,
    normal,
    poisoned,  # noqa: F401 - a fixture
    running,
    threads,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 37, 101), (1, 1, 1), (3, 7, 5), (2, 0, 4), (0, 3, 4)], ids=str)
@pytest.mark.parametrize("backend", backend_params("activation_stats"))
def test_activation_stats(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = normal(*shape, dtype=dtype)
    with running(backend) as device:
        total, squares, peak = ops.activation_stats(x.to(device))
    x64 = double(x)
    assert_near(total, x64.sum(1), np.abs(x64).sum(1))
    assert_near(squares, (x64**2).sum(1))
    assert_near(peak, np.abs(x64).max(1, initial=0.0), relative=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 37, 101), (1, 1, 1), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("backend", backend_params("gate_scores"))
def test_gate_scores(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, dx = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    with running(backend) as device:
        scores = ops.gate_scores(x.to(device), dx.to(device))
    product = double(x) * double(dx)
    assert_near(scores, product.sum(1), np.abs(product).sum(1))


@pytest.mark.parametrize("backend", backend_params("activation_stats"))
def test_activations_of_any_strides(backend: str) -> None:
    x, dx = normal(2, 19, 23).transpose(1, 2), normal(23, 2, 2 * 19)[:, :, ::2].permute(1, 0, 2)
    with running(backend) as device:
        total, _, _ = ops.activation_stats(x.to(device))
        scores = ops.gate_scores(x.to(device), dx.to(device))
    assert_near(total, double(x).sum(1), np.abs(double(x)).sum(1))
    product = double(x) * double(dx)
    assert_near(scores, product.sum(1), np.abs(product).sum(1))


@pytest.mark.parametrize("offset", [0, 1])
def test_words_of_bfloat16_at_any_address(offset: int) -> None:
    x = normal(2, 41, 120, dtype=torch.bfloat16)[:, 1:, offset : offset + 77]
    with running("cpp"):
        total, squares, peak = ops.activation_stats(x)
        scores = ops.gate_scores(x, x)
    assert_near(total, double(x).sum(1), np.abs(double(x)).sum(1))
    assert_near(squares, (double(x) ** 2).sum(1))
    assert_near(peak, np.abs(double(x)).max(1), relative=0.0)
    assert_near(scores, (double(x) ** 2).sum(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_is_the_same_alone_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    """Samples go in groups that share a buffer, whose number must not show."""
    x = normal(37, 300, 129, dtype=dtype)
    results = []
    for count in (1, 3):
        with threads(count), running("cpp"):
            results.append((*ops.activation_stats(x), ops.gate_scores(x, x)))
            alone = (*ops.activation_stats(x[36:]), ops.gate_scores(x[36:], x[36:]))
        assert all(torch.equal(a[36:], b) for a, b in zip(results[-1], alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_halves_of_every_bit_pattern_widen_exactly() -> None:
    """Subnormals, infinities and both zeros, read back through a sum of one element."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        with running("cpp"):
            total, _, peak = ops.activation_stats(values[None, None])
        assert torch.equal(total[0].nan_to_num(nan=-5.0), values.float().nan_to_num(nan=-5.0))
        assert torch.equal(peak[0].nan_to_num(nan=-5.0), values.float().abs().nan_to_num(nan=-5.0))
