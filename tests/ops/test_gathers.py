"""Gathers, on every backend, against indexing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneengine import ops
from pruneengine.ops import extension
from pruneengine.ops.gathers import ALIGNMENT, compact_bytes
from tests.helpers.ops_harness import (
    DTYPES,
    backend_params,
    normal,
    poisoned,  # noqa: F401 - a fixture
    running,
    threads,
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


@pytest.mark.parametrize("keep", [1, 13, 50, 87, 100])
@pytest.mark.parametrize("element_bytes", INTEGER_OF)
def test_columns_kept_at_any_rate(element_bytes: int, keep: int) -> None:
    """Long rows, whole chunks dropped, whole chunks kept, the last column kept or not."""
    generator = torch.Generator().manual_seed(keep)
    for columns in (509, 512):
        weight = torch.randint(0, 100, (7, columns), generator=generator).to(INTEGER_OF[element_bytes])
        index = (torch.rand(columns, generator=generator) * 100 < keep).nonzero()[:, 0]
        arena = torch.full((9, columns + 5), 101, dtype=weight.dtype)
        out = arena[1:8, 3 : 3 + len(index)]
        with running("cpp"):
            extension.gather_columns(weight, index, out=out)
        assert torch.equal(out, weight[:, index])
        assert (arena != 101).sum() == out.numel()


def test_rows_of_a_large_result_bypass_the_caches() -> None:
    """Every alignment of a row's begin and end, and nothing written beside it."""
    weight = torch.randint(0, 250, (1100, 9001), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    index = torch.arange(1099, 0, -1)
    arena = torch.full((1101, 9100), 251, dtype=torch.uint8)
    out = arena[1:1100, 37:9038]
    with running("cpp"):
        extension.gather_rows(weight, index, out=out)
    assert torch.equal(out, weight[index])
    assert (arena != 251).sum() == out.numel()


@st.composite
def layers(draw: st.DrawFn) -> list[tuple[torch.Tensor, list[int], int]]:
    """(weight, index, axis) of a few matrices and biases of mixed dtypes, some of them views."""
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        dtype = draw(st.sampled_from([*DTYPES, torch.uint8, torch.int64]))
        rows, columns, padding = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(0, 3))
        full = torch.randint(0, 100, (rows, columns + padding), generator=torch.Generator().manual_seed(rows)).to(dtype)
        axis = draw(st.sampled_from([0, 1]))
        weight = full[:, 0] if axis == 0 and draw(st.booleans()) else full[:, :columns]
        size = weight.shape[axis]
        index = draw(st.lists(st.integers(0, size - 1), max_size=2 * size, unique=draw(st.booleans())))
        parts.append((weight, sorted(index) if draw(st.booleans()) else index, axis))
    return parts


@pytest.mark.parametrize("backend", backend_params("compact_layer"))
@settings(max_examples=30, deadline=None)
@given(first=layers(), second=layers())
def test_compact_layer(backend: str, first: list, second: list) -> None:
    """Two layers through one arena: aligned views, the kept values, and no byte written outside them."""
    with running(backend) as device:
        arena = None
        for parts in (first, second):
            weights = [weight.to(device) for weight, _, _ in parts]
            indices = [torch.tensor(index, dtype=torch.int64, device=device) for _, index, _ in parts]
            axes = [axis for _, _, axis in parts]
            needed = compact_bytes(weights, indices, axes)
            arena = aligned_bytes(20_000, device) if arena is None else arena
            arena.fill_(201)
            views = ops.compact_layer(weights, indices, axes, arena)
            written = torch.zeros(len(arena), dtype=torch.bool)
            for (weight, index, axis), view in zip(parts, views, strict=True):
                assert torch.equal(view.cpu(), weight.index_select(axis, torch.tensor(index, dtype=torch.int64)))
                assert view.is_contiguous()
                assert view.dtype == weight.dtype
                begin = view.data_ptr() - arena.data_ptr()
                if view.numel():
                    assert begin % ALIGNMENT == 0
                    assert begin + view.numel() * view.element_size() <= needed
                    written[begin : begin + view.numel() * view.element_size()] = True
            assert (arena.cpu()[~written] == 201).all()


def aligned_bytes(count: int, device: str) -> torch.Tensor:
    arena = torch.zeros(count + ALIGNMENT, dtype=torch.uint8, device=device)
    return arena[-arena.data_ptr() % ALIGNMENT :][:count]


@pytest.mark.parametrize("backend", backend_params("compact_layer"))
def test_compact_layer_allocates_its_arena(backend: str) -> None:
    with running(backend) as device:
        weights = [normal(64, 48, dtype=torch.bfloat16).to(device), normal(48, 64).to(device), normal(64).to(device)]
        kept = torch.arange(0, 64, 3, device=device)
        views = ops.compact_layer(weights, [kept, kept, kept], [0, 1, 0])
    for view, expected in zip(views, (weights[0][kept], weights[1][:, kept], weights[2][kept]), strict=True):
        assert torch.equal(view, expected)
        assert view.untyped_storage().data_ptr() == views[0].untyped_storage().data_ptr()


def test_an_arena_serves_any_number_of_threads() -> None:
    weights = [normal(512, 1024, dtype=torch.bfloat16), normal(1024, 512, dtype=torch.bfloat16), normal(1024)]
    kept = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[:700].sort().values
    with threads(3), running("cpp"):
        views = ops.compact_layer(weights * 3, [kept] * 9, [1, 0, 0] * 3)
    for view, weight, axis in zip(views, weights * 3, [1, 0, 0] * 3, strict=True):
        assert torch.equal(view, weight.index_select(axis, kept))
