"""Selections, on every backend, against a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruneengine import ops
from tests.helpers.ops_harness import (
    DTYPES,
    SHAPES,
    backend_params,
    double,
    moved,
    normal,
    poisoned,  # noqa: F401 - a fixture
    running,
    stable_smallest,
)

# Few distinct values and both zeros: most borders run through ties.
TIED = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 3.0, float("inf"), float("-inf"), 1e-40])
TIED_NORM = st.sampled_from([0.5, 1.0, 1.0, 2.0])
# The interpreter takes its time, and fixed inputs test it as well.
PROPERTY_BACKENDS = ["reference", "cpp", pytest.param("cuda", marks=pytest.mark.gpu)]


def weighted(values: Tensor, norm: Tensor | None) -> Tensor:
    """The scores, whose one product a float32 rounds as the ops have to."""
    return values.float() if norm is None else values.float().abs() * norm


def unpacked(bits: Tensor, columns: int) -> np.ndarray:
    flags = np.unpackbits(bits.cpu().numpy(), axis=1, bitorder="little").astype(bool)
    assert bits.dtype == torch.uint8
    assert not flags[:, columns:].any()
    return flags[:, :columns]


def on(device: str, tensors: list[Tensor] | None) -> list[Tensor] | None:
    return None if tensors is None else [moved(tensor, device) for tensor in tensors]


def assert_selects(scores: Tensor, k: int, norm: Tensor | None, device: str) -> None:
    """Both masks and the k-th value of one matrix."""
    expected, columns = weighted(scores, norm), scores.shape[1]
    smallest = stable_smallest(expected, k)
    scores, norm = moved(scores, device), None if norm is None else norm.to(device)
    mask = ops.select_mask(scores, k, norm)
    assert mask.dtype == torch.bool
    assert (mask.cpu().numpy() == smallest).all()
    assert (unpacked(ops.select_mask(scores, k, norm, bits=True), columns) == smallest).all()
    if k:
        value = ops.kth_value(scores, k, norm).cpu()
        assert value.dtype == torch.float32
        assert (double(value) == np.sort(double(expected), axis=1)[:, k - 1]).all()
        assert not torch.signbit(value[value == 0]).any()


def assert_selects_globally(
    matrices: list[Tensor], k: int, norms: list[Tensor] | None, device: str, bits: bool = False
) -> None:
    pairs = zip(matrices, norms or [None] * len(matrices), strict=True)
    row = torch.cat([weighted(matrix, norm).flatten() for matrix, norm in pairs])[None]
    smallest = np.split(stable_smallest(row, k)[0], np.cumsum([matrix.numel() for matrix in matrices])[:-1])
    masks = ops.select_mask_global(on(device, matrices), k, on(device, norms), bits)
    for mask, matrix, expected in zip(masks, matrices, smallest, strict=True):
        mask = unpacked(mask, matrix.shape[1]) if bits else mask.cpu().numpy()
        assert (mask == expected.reshape(matrix.shape)).all()
    if k:
        value = ops.kth_value_global(on(device, matrices), k, on(device, norms))
        assert (double(value) == np.sort(double(row), axis=1)[:, k - 1]).all()


@pytest.mark.parametrize("with_norm", [False, True], ids=("values", "norm"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", backend_params("select_mask"))
def test_selection(backend: str, shape: tuple[int, int], dtype: torch.dtype, with_norm: bool) -> None:
    scores, columns = normal(*shape, dtype=dtype), shape[1]
    if backend == "triton":
        scores = scores[:2]
    norm = normal(columns, seed=1).abs() if with_norm else None
    with running(backend) as device:
        for k in sorted({0, 1, columns // 2, columns}):
            assert_selects(scores, k, norm, device)


@pytest.mark.parametrize("backend", PROPERTY_BACKENDS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(TIED, min_size=9, max_size=9), min_size=1, max_size=4), data=st.data())
def test_ties_go_to_the_lowest_column(backend: str, rows: list[list[float]], data: st.DataObject) -> None:
    scores = torch.tensor(rows).to(data.draw(st.sampled_from(DTYPES)))
    norm = data.draw(st.none() | st.lists(TIED_NORM, min_size=9, max_size=9))
    with running(backend) as device:
        assert_selects(scores, data.draw(st.integers(0, 9)), None if norm is None else torch.tensor(norm), device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backend_params("select_mask"))
def test_long_rows_of_ties(backend: str, dtype: torch.dtype) -> None:
    scores = torch.randint(0, 3, (2, 3001), generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = None if backend == "triton" else torch.ones(3001)
    with running(backend) as device:
        for k in (1, 700, 1500, 3000):
            assert_selects(scores, k, norm, device)


def test_floats_that_share_their_upper_bits() -> None:
    scores = (torch.arange(2 * 999).view(2, 999) * 7919 % 1998 - 999).float() * 2.0**-22 + 1
    with running("cpp") as device:
        for k in (1, 333, 998):
            assert_selects(scores, k, None, device)
            assert_selects(scores, k, 1 + normal(999).abs() * 1e-5, device)
            assert_selects_globally([scores, scores[:1]], k, None, device)


@pytest.mark.parametrize("backend", backend_params("select_mask"))
def test_rows_of_a_wider_matrix(backend: str) -> None:
    scores = normal(3, 40, dtype=torch.bfloat16)[:, 5:26]
    norm = normal(21).abs()
    with running(backend) as device:
        assert_selects(scores, 8, norm, device)
        assert_selects(scores, 8, None, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_norm", [False, True], ids=("values", "norm"))
def test_a_row_longer_than_the_caches(with_norm: bool, dtype: torch.dtype) -> None:
    columns = 2**18 + 3
    scores = normal(2, columns, dtype=dtype)
    norm = normal(columns, seed=1).abs() if with_norm else None
    with running("cpp") as device:
        assert_selects(scores, columns // 2, norm, device)


def of_many_shapes(dtype: torch.dtype) -> list[Tensor]:
    shapes = ((2, 0), (5, 21), (0, 4), (3, 64), (2, 0), (1, 1), (4, 9))
    return [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)] + [
        normal(3, 30, dtype=dtype)[:, 4:17]
    ]


@pytest.mark.parametrize("bits", [False, True], ids=("bools", "bits"))
@pytest.mark.parametrize("with_norm", [False, True], ids=("values", "norm"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backend_params("select_mask_global"))
def test_global_selection(backend: str, dtype: torch.dtype, with_norm: bool, bits: bool) -> None:
    matrices = of_many_shapes(dtype)
    norms = [normal(m.shape[1], seed=9).abs() for m in matrices] if with_norm else None
    total = sum(m.numel() for m in matrices)
    with running(backend) as device:
        for k in (total // 2,) if backend == "triton" else (0, 1, total // 2, total):
            assert_selects_globally(matrices, k, norms, device, bits)


@pytest.mark.parametrize("backend", PROPERTY_BACKENDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_global_ties_go_to_the_first_matrix_and_row(backend: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    matrices = []
    for _ in range(data.draw(st.integers(1, 4))):
        rows, columns = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 9))
        values = data.draw(st.lists(TIED, min_size=rows * columns, max_size=rows * columns))
        matrices.append(torch.tensor(values).view(rows, columns).to(dtype))
    k = data.draw(st.integers(0, sum(m.numel() for m in matrices)))
    with running(backend) as device:
        assert_selects_globally(matrices, k, None, device, data.draw(st.booleans()))


def test_global_ties_across_tasks() -> None:
    """Matrices of more than one task each, with as many ties as there are scores."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((300, 701), (1, 150_001), (40_000, 3))
    matrices = [torch.randint(0, 3, shape, generator=generator).float() for shape in shapes]
    total = sum(m.numel() for m in matrices)
    with running("cpp") as device:
        for dtype in (torch.float32, torch.bfloat16):
            for k in (total // 3 + 1, total // 2, total - 7):
                assert_selects_globally([m.to(dtype) for m in matrices], k, None, device, bits=k % 2 == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, norm = normal(1300, 1001, dtype=dtype), normal(1001, seed=1).abs()
    results = []
    with running("cpp"):
        for threads in (1, 2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            found = [ops.select_mask(scores, 400, norm), ops.kth_value(scores, 400)]
            found += ops.select_mask_global([scores, scores[:900]], 700_000, bits=True)
            results.append([*found, ops.kth_value_global([scores], 700000, [norm])])
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], found, strict=True))
