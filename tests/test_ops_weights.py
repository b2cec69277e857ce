"""Sums and moments of weights, on every backend, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pruneengine import ops
from tests.ops_harness import (  # noqa: F401
    DTYPES,
    SHAPES,
    assert_near,
    backend_params,
    double,
    normal,
    poisoned,
    running,
    stable_smallest,
)


@pytest.mark.parametrize("powers", [(1.0, 1.0), (2.0, 1.0), (0.5, 2.0), (3.0, 0.5)], ids=str)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", backend_params("weight_scores"))
def test_weight_scores(
    backend: str, shape: tuple[int, int], dtype: torch.dtype, with_norm: bool, powers: tuple[float, float]
) -> None:
    weight = normal(*shape, dtype=dtype)
    weight[0, 0] = 0.0
    norm = normal(shape[1], seed=1).abs() if with_norm else None
    with running(backend) as device:
        rows, columns = ops.weight_scores(weight.to(device), None if norm is None else norm.to(device), *powers)
    scores = np.abs(double(weight)) ** powers[0] * (double(norm) ** powers[1] if with_norm else 1.0)
    assert_near(rows, scores.sum(1))
    assert_near(columns, scores.sum(0))


@pytest.mark.parametrize("wide", [False, True], ids=["own dtype", "float32 gradient"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", backend_params("taylor_scores"))
def test_taylor_scores(backend: str, shape: tuple[int, int], dtype: torch.dtype, wide: bool) -> None:
    weight, gradient = normal(*shape, dtype=dtype), normal(*shape, dtype=torch.float32 if wide else dtype, seed=1)
    with running(backend) as device:
        rows, columns = ops.taylor_scores(weight.to(device), gradient.to(device))
    product = double(weight) * double(gradient)
    forms = np.stack([product, np.abs(product), product**2])
    size = np.stack([np.abs(product), np.abs(product), product**2])
    assert_near(rows, forms.sum(2), size.sum(2))
    assert_near(columns, forms.sum(1), size.sum(1))


def test_power_of_extreme_weights() -> None:
    weight = torch.tensor([[0.0, 1e-45, 1e-38, 3e-5, 1.0, -7e4, 3e38, float("inf")]])
    for power in (0.1, 0.5, 1.5, 3.0):
        with running("cpp"):
            _, columns = ops.weight_scores(weight, power=power)
        with np.errstate(over="ignore", under="ignore"):
            expected = np.abs(double(weight)[0]).astype(np.float64) ** power
        expected = torch.from_numpy(expected).float()
        expected[expected < 2.0**-125] = 0.0
        torch.testing.assert_close(columns, expected, rtol=2e-5, atol=2.0**-124)
