"""Moments of scores, on every backend, against float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pruneengine import ops
from pruneengine.ops import reference
from tests.helpers.ops_harness import (
    DTYPES,
    SHAPES,
    backend_params,
    double,
    normal,
    poisoned,  # noqa: F401 - a fixture
    running,
)


def assert_moments(got: tuple[torch.Tensor, ...], scores: torch.Tensor, thresholds: torch.Tensor) -> None:
    """Against numpy in float64; logarithms to 1e-6 of the magnitudes that were added up."""
    moments, above, histogram = got
    assert (moments.dtype, above.dtype, histogram.dtype) == (torch.float64, torch.int64, torch.int64)
    s = double(scores).ravel()
    p = s[s > 0]
    log = np.log(p)
    terms = {"count": np.ones_like(s), "sum": s, "sum2": s**2, "sum3": s**3, "sum4": s**4, "positive": np.ones_like(p)}
    terms |= {"log": log, "log2": log**2, "slog": p * log, "s2log": p**2 * log}
    values = dict(zip(reference.MOMENTS, moments.tolist(), strict=True))
    for name, term in terms.items():
        assert abs(values[name] - term.sum()) <= 1e-6 * np.abs(term).sum(), name
    assert values["count"] == len(s)
    assert values["positive"] == len(p)
    assert values["min"] == pytest.approx(s.min(), rel=1e-5)
    assert values["max"] == pytest.approx(s.max(), rel=1e-5)
    assert above.tolist() == [int((s > bound).sum()) for bound in double(thresholds)]
    edges = np.append(double(reference.histogram_edges())[1:], np.inf)
    assert histogram.tolist() == np.bincount(np.searchsorted(edges, s, side="right"), minlength=len(edges)).tolist()
    assert histogram.sum() == len(s)


THRESHOLDS = torch.tensor([0.0, 0.25, 1.0, 1.0, 3.5, -1.0, float("inf")])
# Two stripes of rows, the second not full. Blocks of columns beside each other are in tests/kernels/test_sums.py.
INTERPRETED = ((37, 200), *SHAPES[1:])


def backends_and_shapes() -> Iterator:
    """Yield every backend with its shapes: smaller ones where Triton is interpreted, row after row."""
    for backend in backend_params("block_moments"):
        name, marks = (backend, ()) if isinstance(backend, str) else (backend.values[0], backend.marks)
        interpreted = name == "triton" and not torch.cuda.is_available()
        for shape in INTERPRETED if interpreted else (*SHAPES, (70, 600)):
            yield pytest.param(name, shape, marks=marks, id=f"{name}-{shape}")


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("backend", "shape"), backends_and_shapes())
def test_block_moments(backend: str, shape: tuple[int, int], dtype: torch.dtype, with_norm: bool, power: float) -> None:
    weight = normal(*shape, dtype=dtype)
    weight.flatten()[1::7] = 0.0
    norm = normal(shape[1], seed=1).abs() if with_norm else None
    with running(backend) as device:
        moved = None if norm is None else norm.to(device)
        got = ops.block_moments(weight.to(device), moved, power, thresholds=THRESHOLDS.to(device))
    assert_moments(got, reference.raised(weight, norm, power, 1.0), THRESHOLDS)


def check_scaled(backend: str, scale: float) -> None:
    weight = normal(5, 300) * scale
    weight[2] = 0.0
    thresholds = torch.tensor([scale])
    with running(backend) as device:
        got = ops.block_moments(weight.to(device), thresholds=thresholds.to(device))
    assert_moments(got, weight.abs(), thresholds)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("backend", backend_params("block_moments"))
def test_block_moments_of_small_and_large_scores(backend: str, scale: float) -> None:
    check_scaled(backend, scale)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-12, 1e36])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_block_moments_of_tiny_and_huge_scores(backend: str, scale: float) -> None:
    """Fourth powers that float32 cannot hold, and subnormal scores, which have logarithms too."""
    check_scaled(backend, scale)


def test_block_moments_of_scores_of_every_size() -> None:
    weight = normal(40, 700) * 10 ** torch.empty(40, 700).uniform_(-44, 37, generator=torch.Generator().manual_seed(1))
    with running("cpp"):
        assert_moments(ops.block_moments(weight, thresholds=[1e-40, 1.0]), weight.abs(), torch.tensor([1e-40, 1.0]))


@pytest.mark.parametrize("backend", backend_params("block_moments"))
def test_block_moments_with_any_power_and_none_at_all(backend: str) -> None:
    weight, norm = normal(6, 90), normal(90, seed=1).abs()
    with running(backend) as device:
        moments, above, histogram = ops.block_moments(weight.to(device), norm.to(device), 0.5, 1.5)
        nothing = ops.block_moments(weight[:0].to(device), thresholds=[1.0])
    s = np.abs(double(weight)) ** 0.5 * double(norm) ** 1.5
    assert moments[1].item() == pytest.approx(s.sum(), rel=2e-5)
    assert moments[10].item() == pytest.approx((s * np.log(s)).sum(), rel=2e-5)
    assert (above.shape, histogram.sum()) == ((0,), 540)
    assert nothing[0].tolist() == [0, 0, 0, 0, 0, float("inf"), float("-inf"), 0, 0, 0, 0, 0]
    assert (nothing[1].tolist(), nothing[2].sum()) == ([0], 0)


def test_block_moments_keep_what_is_not_finite_visible() -> None:
    with running("cpp"):
        infinite, above, _ = ops.block_moments(torch.tensor([[1.0, float("inf"), 0.0]]), thresholds=[2.0])
        nan, none, _ = ops.block_moments(torch.tensor([[1.0, float("nan"), 0.0]]), thresholds=[2.0])
    assert infinite.tolist() == [3.0, *[float("inf")] * 4, 0.0, float("inf"), 2.0, *[float("inf")] * 4]
    assert nan[[1, 2, 3, 4, 5, 6]].isnan().all()
    assert (above.item(), none.item()) == (1, 0)
