"""n:m masks, quantile codes and masked copies, on every backend, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruneengine import ops
from tests.helpers.ops_harness import (
    DTYPES,
    backend_params,
    double,
    moved,
    normal,
    poisoned,  # noqa: F401 - a fixture
    running,
    stable_smallest,
)

TIED = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 3.0, float("inf"), float("-inf"), 1e-40])
# The interpreter takes its time, and fixed inputs test it as well.
PROPERTY_BACKENDS = ["reference", "cpp"]


def weighted(values: Tensor, norm: Tensor | None) -> Tensor:
    """The scores, whose one product a float32 rounds as the ops have to."""
    return values.float() if norm is None else values.float().abs() * norm


def smallest_of_groups(scores: Tensor, n: int, m: int) -> np.ndarray:
    return stable_smallest(scores.reshape(-1, m), m - n).reshape(scores.shape)


def expected_codes(scores: Tensor) -> np.ndarray:
    ranks = np.argsort(np.argsort(double(scores) + 0.0, axis=1, kind="stable"), axis=1)
    return ranks * 256 // scores.shape[1]


def assert_masks(scores: Tensor, n: int, m: int, norm: Tensor | None, device: str) -> None:
    """The mask, and the weight with it applied, bit for bit."""
    there, norm_there = moved(scores, device), None if norm is None else norm.to(device)
    mask = ops.nm_mask(there, n, m, norm_there)
    assert mask.dtype == torch.bool
    assert (mask.cpu().numpy() == smallest_of_groups(weighted(scores, norm), n, m)).all()
    assert (mask.reshape(-1, m).sum(1) == m - n).all()
    pruned = ops.nm_apply(there, n, m, norm_there).cpu()
    magnitudes = scores.float().abs() if norm is None else weighted(scores, norm)
    kept = scores.masked_fill(torch.from_numpy(smallest_of_groups(magnitudes, n, m)), 0)
    assert pruned.dtype == scores.dtype
    assert pruned.is_contiguous()
    assert torch.equal(pruned.view(torch.uint8), kept.contiguous().view(torch.uint8))
    itself = there.contiguous() if there.is_contiguous() else there.clone(memory_format=torch.contiguous_format)
    for out in (torch.full_like(itself, math.nan), itself):
        ops.nm_apply(itself, n, m, norm_there, out)
        assert torch.equal(out.cpu().view(torch.uint8), kept.contiguous().view(torch.uint8))


@pytest.mark.parametrize("with_norm", [False, True], ids=("values", "norm"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 3), (16, 32), (0, 4), (8, 8), (1, 1)])
@pytest.mark.parametrize("backend", backend_params("nm_mask"))
def test_nm(backend: str, n: int, m: int, dtype: torch.dtype, with_norm: bool) -> None:
    columns = 7 * m if backend == "triton" else 67 * m
    scores = normal(3, columns + 5, dtype=dtype)[:, 2 : 2 + columns]
    norm = normal(columns, seed=1).abs() if with_norm else None
    with running(backend) as device:
        assert_masks(scores, n, m, norm, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (5, 30)])
def test_nm_of_long_rows(n: int, m: int, dtype: torch.dtype) -> None:
    scores = normal(2, 1203 * m, dtype=dtype)
    with running("cpp") as device:
        assert_masks(scores, n, m, None, device)
        assert_masks(scores, n, m, normal(1203 * m, seed=1).abs(), device)


@pytest.mark.parametrize("backend", PROPERTY_BACKENDS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_nm_ties_go_to_the_lowest_column(backend: str, data: st.DataObject) -> None:
    m = data.draw(st.sampled_from([4, 8, 4, 8, 2, 7, 32]))
    values = data.draw(st.lists(TIED, min_size=6 * m, max_size=6 * m))
    scores = torch.tensor(values).view(1, -1).to(data.draw(st.sampled_from(DTYPES)))
    norm = torch.ones(6 * m) if data.draw(st.booleans()) else None
    with running(backend) as device:
        assert_masks(scores, data.draw(st.integers(0, m)), m, norm, device)


@pytest.mark.parametrize("with_norm", [False, True], ids=("values", "norm"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1001), (1, 1), (2, 7), (2, 256)], ids=str)
@pytest.mark.parametrize("backend", backend_params("quantile_codes"))
def test_codes(backend: str, shape: tuple[int, int], dtype: torch.dtype, with_norm: bool) -> None:
    scores = normal(*shape, dtype=dtype)
    norm = normal(shape[1], seed=1).abs() if with_norm else None
    with running(backend) as device:
        codes = ops.quantile_codes(scores.to(device), None if norm is None else norm.to(device)).cpu()
    assert codes.dtype == torch.uint8
    assert (codes.numpy() == expected_codes(weighted(scores, norm))).all()
    for level in range(257):
        assert ((codes.int() < level).sum(1) == -(-level * shape[1] // 256)).all()


@pytest.mark.parametrize("backend", PROPERTY_BACKENDS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_codes_of_ties_go_by_column(backend: str, data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 300))
    values = data.draw(st.lists(TIED, min_size=columns, max_size=columns))
    scores = torch.tensor(values)[None].to(data.draw(st.sampled_from(DTYPES)))
    with running(backend) as device:
        codes = ops.quantile_codes(scores.to(device)).cpu().numpy()
    assert (codes == expected_codes(scores)).all()


OUTLIERS = {
    "normal": lambda x: x,
    "half zero": lambda x: x.clamp(min=0),
    "one outlier": lambda x: torch.cat([x[:, 1:], torch.full_like(x[:, :1], 1e4)], 1),
    "close together": lambda x: 1 + x * 1e-6,
    "all equal": torch.ones_like,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", OUTLIERS)
def test_codes_of_any_distribution(shape: str, dtype: torch.dtype) -> None:
    scores = OUTLIERS[shape](normal(2, 70_003)).to(dtype)
    with running("cpp"):
        assert (ops.quantile_codes(scores).numpy() == expected_codes(scores)).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", backend_params("masked_copy"))
def test_masked_copy(backend: str, dtype: torch.dtype) -> None:
    rows, columns = 3, 77
    wide = (normal(rows, columns + 9) * 50).to(dtype)
    weight = wide[:, 4 : 4 + columns]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (rows, columns + 3), dtype=torch.uint8, generator=generator)[:, :columns]
    with running(backend) as device:
        for level in (0, 1, 100, 255, 256):
            expected = weight.masked_fill(codes.int() < level, 0)
            around = torch.full((rows + 2, columns + 6), 7, dtype=dtype, device=device)
            out = around[1:-1, 2 : 2 + columns]
            assert ops.masked_copy(weight.to(device), codes.to(device), level, out) is out
            assert torch.equal(out.cpu(), expected)
            out.fill_(7)
            assert (around == 7).all()
            in_place = wide.to(device)[:, 4 : 4 + columns]
            ops.masked_copy(in_place, codes.to(device), level, in_place)
            assert torch.equal(in_place.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_masked_copy_past_the_caches(dtype: torch.dtype) -> None:
    """From 16 MiB on, stores bypass the caches; odd rows put them on every alignment."""
    rows, columns = 2**24 // dtype.itemsize // 4001 + 2, 4001
    weight = torch.arange(rows * columns).view(rows, columns).remainder(113).to(dtype)
    codes = torch.arange(rows * columns).view(rows, columns).mul(37).remainder(256).to(torch.uint8)
    out = torch.full((rows, columns + 2), 7, dtype=dtype)
    with running("cpp"):
        ops.masked_copy(weight, codes, 99, out[:, 1:-1])
    assert torch.equal(out[:, 1:-1], weight.masked_fill(codes < 99, 0))
    assert (out[:, [0, -1]] == 7).all()


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, norm = normal(1300, 1000), normal(1000, seed=1).abs()
    results = []
    with running("cpp"):
        for threads in (1, 2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            codes = ops.quantile_codes(scores, norm)
            found = [codes, ops.nm_mask(scores, 2, 4, norm), ops.nm_apply(scores, 4, 8)]
            results.append([*found, ops.masked_copy(scores, codes, 77, torch.empty_like(scores))])
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], found, strict=True))
