"""The ops where only a GPU should run them: full-size matrices, many of them, streams, graphs, other devices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.ops import extension, reference
from tests.helpers.ops_harness import DTYPES, running

pytestmark = pytest.mark.gpu
LLAMA = (4096, 11008)


def weight(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0, device: str = "cuda") -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(dtype)


def norm_of(columns: int, device: str = "cuda") -> Tensor:
    return torch.rand(columns, generator=torch.Generator(device).manual_seed(1), device=device)


def kept(size: int, share: float, device: str = "cuda") -> Tensor:
    chosen = torch.rand(size, generator=torch.Generator(device).manual_seed(2), device=device) < share
    return chosen.nonzero()[:, 0]


def need_memory(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free device memory; {free:.1f} are free")


def assert_same(got: Tensor | list[Tensor], expected: Tensor | list[Tensor]) -> None:
    pairs = [(got, expected)] if isinstance(got, Tensor) else zip(got, expected, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [LLAMA, (4095, 11007), (512, 2048), (8, 150_000)], ids=str)
def test_rows_are_selected_as_by_the_reference(shape: tuple[int, int], dtype: torch.dtype, normed: bool) -> None:
    """The longest rows do not fit into shared memory; the odd ones are not aligned."""
    w, norm = weight(*shape, dtype=dtype), norm_of(shape[1]) if normed else None
    with running("cuda"):
        for k in (1, shape[1] // 2, shape[1]):
            assert_same(ops.kth_value(w, k, norm), reference.kth_value(w, k, norm))
            assert_same(ops.select_mask(w, k, norm), reference.select_mask(w, k, norm))
        assert_same(ops.select_mask(w, k // 3, norm, bits=True), reference.select_mask(w, k // 3, norm, bits=True))


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_matrices_are_selected_as_by_the_reference(dtype: torch.dtype, normed: bool) -> None:
    shapes = [(256, 576), (255, 577), (0, 8), (1536, 576), (576, 1536), (1, 1)] * 25
    matrices = [weight(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    norms = [norm_of(shape[1]) for shape in shapes] if normed else None
    total = sum(matrix.numel() for matrix in matrices)
    with running("cuda"):
        for k in (1, total // 2, total - 1):
            assert_same(ops.kth_value_global(matrices, k, norms), reference.kth_value_global(matrices, k, norms))
            for bits in (False, True):
                expected = reference.select_mask_global(matrices, k, norms, bits)
                assert_same(ops.select_mask_global(matrices, k, norms, bits), expected)


def test_one_matrix_of_ties_is_cut_at_the_right_one() -> None:
    w = torch.ones(LLAMA, dtype=torch.bfloat16, device="cuda")
    with running("cuda"):
        for k in (1, 12_345_678, w.numel() - 1):
            (mask,) = ops.select_mask_global([w], k)
            assert mask.flatten()[:k].all()
            assert not mask.flatten()[k:].any()


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_full_size_gathers(dtype: torch.dtype, share: float) -> None:
    w = (weight(*LLAMA, dtype=torch.float32) * 50).clamp(-100, 100).abs().to(dtype)
    rows, columns = kept(LLAMA[0], share), kept(LLAMA[1], share)
    heads = (kept(LLAMA[1] // 128, share)[:, None] * 128 + torch.arange(128, device="cuda")).flatten()
    with running("cuda"):
        assert_same(ops.gather_rows(w, rows), w[rows])
        assert_same(ops.gather_columns(w, columns), w[:, columns])
        assert_same(ops.gather_columns(w, heads), w[:, heads])
        assert_same(ops.gather_rows(w[:, 1:], rows), w[rows, 1:])
        assert_same(ops.gather_columns(w[:, 1:], columns[:-1]), w[:, columns[:-1] + 1])


def layer() -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Return q, k, v, o and gate, up, down with biases, of one layer; 70 parts are more than one launch takes."""
    heads = (kept(32, 0.7)[:, None] * 128 + torch.arange(128, device="cuda")).flatten()
    channels = kept(11008, 0.6)
    weights = [weight(4096, 4096, seed=i) for i in range(4)] + [weight(11008, 4096, seed=i) for i in (4, 5)]
    weights += [weight(4096, 11008, seed=6), weight(4096, dtype=torch.float32), weight(11008, dtype=torch.float16)]
    indices = [heads] * 4 + [channels] * 3 + [heads, channels]
    axes = [0, 0, 0, 1, 0, 0, 1, 0, 0]
    small = [weight(33, 65, seed=i) for i in range(61)]
    return weights + small, indices + [kept(33, 0.5)] * 61, axes + [0] * 61


def test_a_layer_is_compacted_in_one_call() -> None:
    weights, indices, axes = layer()
    with running("cuda"):
        parts = ops.compact_layer(weights, indices, axes)
    assert_same(parts, [w.index_select(axis, i) for w, i, axis in zip(weights, indices, axes, strict=True)])


def everything(device: str = "cuda") -> dict[str, Callable[[], Tensor | list[Tensor]]]:
    w, norm, columns = weight(2048, 5504, device=device), norm_of(5504, device), kept(5504, 0.5, device)
    many, rows = [w[:700], w[700:]], kept(2048, 0.5, device)
    k = w.numel() // 2
    return {
        "kth_value": lambda: ops.kth_value(w, 2000, norm),
        "select_mask": lambda: ops.select_mask(w, 2000, norm, bits=True),
        "kth_value_global": lambda: ops.kth_value_global(many, k),
        "select_mask_global": lambda: ops.select_mask_global(many, k, [norm, norm]),
        "gather_rows": lambda: ops.gather_rows(w, rows),
        "gather_columns": lambda: ops.gather_columns(w, columns),
        "compact_layer": lambda: ops.compact_layer([w, norm], [columns, columns], [1, 0]),
    }


@pytest.mark.parametrize("op", extension.CUDA_OPS)
def test_a_second_run_gives_the_same_bits(op: str) -> None:
    call = everything()[op]
    with running("cuda"):
        first = call()
        for _ in range(5):
            assert_same(call(), first)


@pytest.mark.parametrize("op", extension.CUDA_OPS)
def test_work_is_queued_on_the_current_stream(op: str) -> None:
    call, stream = everything()[op], torch.cuda.Stream()
    with running("cuda"):
        with torch.cuda.stream(stream):
            expected = call()  # memory that is not there yet would be waited for below
            stream.synchronize()
            torch.cuda._sleep(200_000_000)
            got = call()
            assert not stream.query(), "the call waited for the device"
        stream.synchronize()
    assert_same(got, expected)


@pytest.mark.parametrize("op", extension.CUDA_OPS)
def test_a_captured_graph_replays_on_new_values(op: str) -> None:
    w, norm, columns = weight(512, 5504), norm_of(5504), kept(5504, 0.5)
    call = {
        "kth_value": lambda: ops.kth_value(w, 2000, norm),
        "select_mask": lambda: ops.select_mask(w, 2000, norm),
        "kth_value_global": lambda: ops.kth_value_global([w, w[:9]], 9999),
        "select_mask_global": lambda: ops.select_mask_global([w, w[:9]], 9999),
        "gather_rows": lambda: ops.gather_rows(w, columns[:300] // 11),
        "gather_columns": lambda: ops.gather_columns(w, columns),
        "compact_layer": lambda: ops.compact_layer([w, norm], [columns, columns], [1, 0]),
    }[op]
    with running("cuda"):
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = call()
        w.copy_(weight(512, 5504, seed=5))
        graph.replay()
        torch.cuda.synchronize()
        assert_same(got, call())


def test_masked_copy_is_captured_with_its_level() -> None:
    w = weight(512, 5504)
    codes, out = ops.quantile_codes(w.abs()), torch.empty_like(w)
    ops.masked_copy(w, codes, 128, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.masked_copy(w, codes, 128, out)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, w.masked_fill(codes < 128, 0))


@pytest.mark.parametrize("op", extension.CUDA_OPS)
def test_a_second_device(op: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    call, there = everything()[op], everything("cuda:1")[op]
    with running("cuda"):
        expected, got = call(), there()
    many = [got] if isinstance(got, Tensor) else got
    assert {str(tensor.device) for tensor in many} == {"cuda:1"}
    with ops.use_backend("reference"):
        assert_same(got, there())
    assert torch.cuda.current_device() == 0
    assert len(many) == len([expected] if isinstance(expected, Tensor) else expected)


def test_more_elements_than_an_int32_counts() -> None:
    need_memory(16)
    rows, columns = 70_001, 32_768
    w = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
    w[-1] = torch.arange(columns, device="cuda").bfloat16()
    index = torch.tensor([rows - 1, 0, rows - 1], device="cuda")
    with running("cuda"):
        assert_same(ops.gather_rows(w, index), w[index])
        assert_same(ops.gather_columns(w, index % columns)[-1], w[-1, index % columns])
        assert_same(ops.kth_value(w, columns)[-1:], w[-1].float().max()[None])
        assert not ops.select_mask(w, 1)[-1, 1:].any()

        surely_zero = (rows - 1) * columns
        assert float(ops.kth_value_global([w], surely_zero + 1)) == 0.0
        assert float(ops.kth_value_global([w], surely_zero + 2)) == 1.0
        (bits,) = ops.select_mask_global([w], surely_zero, bits=True)
        assert bool((bits[:-1] == 255).all())
        assert not bits[-1].any()
