"""Sums of weights, on every backend, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pruneengine import ops
from tests.helpers.ops_harness import (
    DTYPES,
    SHAPES,
    assert_near,
    backend_params,
    double,
    moved,
    normal,
    poisoned,  # noqa: F401 - a fixture
    running,
    threads,
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backend_params("weight_scores"))
def test_weight_scores_of_several_powers_and_norms(backend: str, dtype: torch.dtype) -> None:
    """Each of K scores is what it is alone."""
    weight, norms, powers, norm_powers = (
        normal(38, 131, dtype=dtype),
        normal(4, 131, seed=1).abs(),
        (1, 2, 0.5, 1),
        (1, 2),
    )
    with running(backend) as device:
        weight, norms = weight.to(device), norms.to(device)
        plain = ops.weight_scores(weight, power=powers)
        normed = ops.weight_scores(weight, norms, powers, (*norm_powers, *norm_powers))
        one_norm = ops.weight_scores(weight, norms[0], norm_power=norm_powers)
        alone = ops.weight_scores(weight, norms[1], 2.0, 2.0)
    magnitude, factors = np.abs(double(weight)), double(norms)
    for k, power in enumerate(powers):
        assert_near(plain[0][k], (magnitude**power).sum(1))
        assert_near(plain[1][k], (magnitude**power).sum(0))
        scores = magnitude**power * factors[k] ** norm_powers[k % 2]
        assert_near(normed[0][k], scores.sum(1))
        assert_near(normed[1][k], scores.sum(0))
    for k, norm_power in enumerate(norm_powers):
        assert_near(one_norm[0][k], (magnitude * factors[0] ** norm_power).sum(1))
    assert_near(alone[0], double(normed[0][1]))
    assert_near(alone[1], double(normed[1][1]))


@pytest.mark.parametrize("backend", backend_params("weight_scores"))
def test_sums_of_units(backend: str) -> None:
    weight, gradient = normal(24, 35), normal(24, 35, seed=1)
    with running(backend) as device:
        weight, gradient = weight.to(device), gradient.to(device)
        scores = ops.weight_scores(weight, row_unit=8, column_unit=5)
        several = ops.weight_scores(weight, power=[1.0, 2.0], row_unit=8, column_unit=5)
        taylor = ops.taylor_scores(weight, gradient, row_unit=8, column_unit=5)
    magnitude, product = np.abs(double(weight)), double(weight) * double(gradient)
    assert_near(scores[0], magnitude.reshape(3, -1).sum(1))
    assert_near(scores[1], magnitude.T.reshape(7, -1).sum(1))
    assert_near(several[0][1], (magnitude**2).reshape(3, -1).sum(1))
    assert_near(several[1][1], (magnitude**2).T.reshape(7, -1).sum(1))
    assert_near(taylor[0][1], np.abs(product).reshape(3, -1).sum(1))
    assert_near(taylor[1][2], (product**2).T.reshape(7, -1).sum(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("forms", [("absolute",), ("squared", "signed"), ("signed",)], ids=str)
@pytest.mark.parametrize("shape", [(37, 201), (3, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("backend", backend_params("taylor_scores"))
def test_some_forms_of_taylor_scores(
    backend: str, shape: tuple[int, int], forms: tuple[str, ...], dtype: torch.dtype
) -> None:
    weight, gradient = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    with running(backend) as device:
        rows, columns = ops.taylor_scores(weight.to(device), gradient.to(device), forms)
    product = double(weight) * double(gradient)
    all_forms = {"signed": product, "absolute": np.abs(product), "squared": product**2}
    for k, form in enumerate(forms):
        size = np.abs(all_forms[form])
        assert_near(rows[k], all_forms[form].sum(1), size.sum(1))
        assert_near(columns[k], all_forms[form].sum(0), size.sum(0))
    assert len(rows) == len(columns) == len(forms)


@pytest.mark.parametrize("backend", backend_params("weight_scores"))
def test_rows_with_a_stride(backend: str) -> None:
    """Rows of a view, one of an odd stride: bfloat16 is read by words that then cross the alignment of words."""
    weight, gradient = (
        normal(9, 77, dtype=torch.bfloat16)[::2, 1:72],
        normal(5, 99, dtype=torch.bfloat16, seed=1)[:, 3:74],
    )
    with running(backend) as device:
        on_device = moved(weight, device)
        scores = ops.weight_scores(on_device)
        taylor = ops.taylor_scores(on_device, moved(gradient, device))
    assert_near(scores[0], np.abs(double(weight)).sum(1))
    assert_near(scores[1], np.abs(double(weight)).sum(0))
    product = double(weight) * double(gradient)
    assert_near(taylor[0][1], np.abs(product).sum(1))
    assert_near(taylor[1][2], (product**2).sum(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cpp_sums_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    weight, gradient = normal(700, 5003, dtype=dtype), normal(700, 5003, dtype=dtype, seed=1)
    results = []
    for count in (1, 3):
        with threads(count), running("cpp"):
            sums = (*ops.weight_scores(weight, power=(1.0, 2.0)), *ops.taylor_scores(weight, gradient))
            results.append((*sums, *ops.block_moments(weight, thresholds=[1.0])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def outer_sums(weight: torch.Tensor, delta: torch.Tensor, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The forms of ``W * G`` for each sample's ``G``, and the magnitudes they were added from: ``[N, 3, R, C]``."""
    gradient = np.einsum("ntr,ntc->nrc", double(delta), double(x))
    size = np.einsum("ntr,ntc->nrc", np.abs(double(delta)), np.abs(double(x))) * np.abs(double(weight))
    product = gradient * double(weight)
    return np.stack([product, np.abs(product), product**2], 1), np.stack([size, size, size**2], 1)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 19, 33), (1, 1, 1, 1), (3, 0, 4, 5), (0, 4, 3, 2)], ids=str)
@pytest.mark.parametrize("backend", backend_params("taylor_scores_outer"))
def test_taylor_scores_outer(backend: str, shape: tuple[int, ...], dtype: torch.dtype, per_sample: bool) -> None:
    samples, tokens, rows, columns = shape
    weight = normal(rows, columns, dtype=dtype)
    delta, x = normal(samples, tokens, rows, dtype=dtype, seed=1), normal(samples, tokens, columns, dtype=dtype, seed=2)
    with running(backend) as device:
        got = ops.taylor_scores_outer(weight.to(device), delta.to(device), x.to(device), per_sample)
    if not per_sample:
        delta, x = delta.flatten(0, 1)[None], x.flatten(0, 1)[None]
    forms, size = outer_sums(weight, delta, x)
    for sums, axis in zip(got, (3, 2), strict=True):
        expected, scale = forms.sum(axis), size.sum(axis)
        assert_near(sums, expected if per_sample else expected[0], scale if per_sample else scale[0])


@pytest.mark.parametrize("backend", backend_params("taylor_scores_outer"))
def test_taylor_scores_outer_of_any_strides_in_units(backend: str) -> None:
    weight, delta, x = normal(12, 10), normal(12, 3, 2).permute(2, 1, 0), normal(2, 20, 6, seed=1)[:, ::2, ::2].mT
    with running(backend) as device:
        rows, columns = ops.taylor_scores_outer(weight.to(device), delta.to(device), x.to(device), True, 4, 5)
    forms, size = outer_sums(weight, delta, x)
    assert_near(rows, forms.sum(3).reshape(2, 3, 3, 4).sum(3), size.sum(3).reshape(2, 3, 3, 4).sum(3))
    assert_near(columns, forms.sum(2).reshape(2, 3, 2, 5).sum(3), size.sum(2).reshape(2, 3, 2, 5).sum(3))


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
