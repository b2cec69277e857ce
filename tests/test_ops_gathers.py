"""Gathers, on every backend, against indexing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneengine import extension, ops
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

INTEGER_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("element_bytes", INTEGER_OF)
@pytest.mark.parametrize("backend", backend_params("gather_rows"))
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rows=st.integers(1, 12), columns=st.integers(1, 70), padding=st.integers(0, 3))
def test_gathers(backend: str, element_bytes: int, data: st.DataObject, rows: int, columns: int, padding: int) -> None:
    full = torch.randint(0, 100, (rows, columns + padding)).to(INTEGER_OF[element_bytes])
    weight = full[:, :columns]
    row_index = data.draw(st.lists(st.integers(0, rows - 1), max_size=20))
    kept = data.draw(st.lists(st.integers(0, columns - 1), max_size=40))
    column_index = sorted(set(kept)) if data.draw(st.booleans()) else kept
    with running(backend) as device:
        moved = full.to(device)[:, :columns]
        by_row = ops.gather_rows(moved, torch.tensor(row_index, dtype=torch.int64, device=device))
        bias = ops.gather_rows(moved[:, 0], torch.tensor(row_index, dtype=torch.int64, device=device))
        by_column = ops.gather_columns(moved, torch.tensor(column_index, dtype=torch.int64, device=device))
    assert by_row.is_contiguous()
    assert by_column.is_contiguous()
    assert (by_row.cpu().numpy() == weight.numpy()[row_index]).all()
    assert (bias.cpu().numpy() == weight.numpy()[row_index, 0]).all()
    assert (by_column.cpu().numpy() == weight.numpy()[:, column_index]).all()


@pytest.mark.parametrize("backend", ["cpp", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kept", [slice(0, None, 3), slice(64, 320)], ids=["scattered", "one run"])
def test_gathers_write_only_their_part_of_a_larger_buffer(backend: str, kept: slice) -> None:
    with running(backend) as device:
        weight = normal(40, 512, dtype=torch.bfloat16).to(device)
        index = torch.arange(512, device=device)[kept]
        arena = torch.full((42, 600), 7.0, dtype=torch.bfloat16, device=device)
        out = arena[1:41, 8 : 8 + len(index)]
        extension.gather_columns(weight, index, out=out)
        assert torch.equal(out, weight[:, kept])
        assert (arena != 7).sum() == (out != 7).sum()

        arena.fill_(7.0)
        out = arena[1:4, 8:520]
        extension.gather_rows(weight, torch.tensor([39, 0, 5], device=device), out=out)
        assert torch.equal(out, weight[[39, 0, 5]])
        assert (arena != 7).sum() == (out != 7).sum()
