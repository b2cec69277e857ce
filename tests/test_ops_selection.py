"""Selections, on every backend, against a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", backend_params("select_mask"))
def test_selection(backend: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    scores = normal(*shape, dtype=dtype)
    if backend == "triton":
        scores = scores[:4]  # the interpreter takes its time
    columns = shape[1]
    with running(backend) as device:
        for k in sorted({0, 1, columns // 2, columns}):
            mask = ops.select_mask(scores.to(device), k)
            assert mask.dtype == torch.bool
            assert (mask.cpu().numpy() == stable_smallest(scores, k)).all()
            if k:
                value = ops.kth_value(scores.to(device), k)
                assert_near(value, np.sort(double(scores), axis=1)[:, k - 1], relative=0.0)


# Few distinct values and both zeros: most borders run through ties.
TIED = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 3.0, float("inf"), float("-inf"), 1e-40])


@pytest.mark.parametrize("backend", ["reference", "cpp", pytest.param("cuda", marks=pytest.mark.gpu)])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(TIED, min_size=9, max_size=9), min_size=1, max_size=4), data=st.data())
def test_ties_go_to_the_lowest_column(backend: str, rows: list[list[float]], data: st.DataObject) -> None:
    scores = torch.tensor(rows).to(data.draw(st.sampled_from(DTYPES)))
    k = data.draw(st.integers(0, 9))
    with running(backend) as device:
        mask = ops.select_mask(scores.to(device), k).cpu()
    assert (mask.sum(1) == k).all()
    assert (mask.numpy() == stable_smallest(scores, k)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", backend_params("select_mask"))
def test_long_rows_of_ties(backend: str, dtype: torch.dtype) -> None:
    scores = torch.randint(0, 3, (2, 3001), generator=torch.Generator().manual_seed(0)).to(dtype)
    with running(backend) as device:
        for k in (1, 700, 1500, 3000):
            mask = ops.select_mask(scores.to(device), k).cpu()
            assert (mask.numpy() == stable_smallest(scores, k)).all()
