"""Every op on every backend against float64 NumPy, and the contract around them: strides, threads, ties, errors."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruneengine import backends, extension, ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((37, 1001), (1, 1), (3, 7))
INTEGER_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def backend_params(op: str) -> list:
    """The backends that have the op; ``cuda`` runs where there is a GPU."""
    names = ["reference", "cpp"]
    names += ["triton"] if op in backends.TRITON_MODULES else []
    marked = [pytest.param("cuda", marks=pytest.mark.gpu)] if op in extension.CUDA_OPS else []
    return names + marked


@contextlib.contextmanager
def running(backend: str):
    """The device to test on, with the backend forced; a missing one skips with its reason."""
    reason = ops.available_backends()[backend]
    if reason != "available":
        pytest.skip(f"{backend}: {reason}")
    device = "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"
    with ops.use_backend(backend):
        yield device


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh outputs hold NaN or garbage, so that an element nobody writes shows."""
    empty = torch.empty

    def poisoned_empty(*args: object, **kwargs: object) -> Tensor:
        tensor = empty(*args, **kwargs)
        if tensor.is_floating_point() and tensor.device.type == "cpu":
            tensor.fill_(float("nan"))
        elif tensor.device.type == "cpu":
            tensor.view(torch.uint8).fill_(1)
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned_empty)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def double(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def assert_near(got: Tensor, expected: np.ndarray, size: np.ndarray | None = None, relative: float = 2e-5) -> None:
    """Within ``relative`` of the sum of the magnitudes that were added up (a signed sum may cancel to nothing)."""
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    scale = np.abs(expected) if size is None else size
    assert (np.abs(double(got) - expected) <= relative * scale + 1e-30).all()


def stable_smallest(scores: Tensor, k: int) -> np.ndarray:
    values = double(scores) + 0.0  # -0.0 becomes 0.0
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(values, axis=1, kind="stable")[:, :k], True, axis=1)
    return mask


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_thread_and_two_agree_to_the_bit(dtype: torch.dtype) -> None:
    """Above two megabytes, where the second thread is really used."""
    weight, other = normal(601, 4099, dtype=dtype), normal(601, 4099, dtype=dtype, seed=1)
    index = torch.randperm(4099)[:2000]

    def everything() -> list[Tensor]:
        with running("cpp"):
            return [
                *ops.activation_stats(weight[None]),
                ops.gate_scores(weight[None], other[None]),
                *ops.weight_scores(weight, power=0.7),
                *ops.taylor_scores(weight, other),
                ops.kth_value(weight, 1000),
                ops.select_mask(weight, 1000),
                ops.gather_columns(weight, index),
                ops.gather_rows(weight.T.contiguous(), index),
            ]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(2)
        together = everything()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert_near(alone[0], double(weight)[None].sum(1), np.abs(double(weight))[None].sum(1))


def test_halves_of_every_bit_pattern_widen_exactly() -> None:
    """Subnormals, infinities and both zeros, read back through a sum of one element."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        with running("cpp"):
            total, _, peak = ops.activation_stats(values[None, None])
        assert torch.equal(total[0].nan_to_num(nan=-5.0), values.float().nan_to_num(nan=-5.0))
        assert torch.equal(peak[0].nan_to_num(nan=-5.0), values.float().abs().nan_to_num(nan=-5.0))


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


def calls() -> dict[str, tuple]:
    weight, x, index = normal(5, 6), normal(2, 3, 4), torch.tensor([3, 0])
    return {
        "activation_stats": (x,),
        "gate_scores": (x, x.clone()),
        "weight_scores": (weight, torch.rand(6), 1.0, 2.0),
        "taylor_scores": (weight, weight.clone()),
        "kth_value": (weight, 2),
        "select_mask": (weight, 2),
        "gather_rows": (weight, index),
        "gather_columns": (weight, index),
    }


@pytest.mark.parametrize("op", calls())
def test_opcheck(op: str) -> None:
    torch.library.opcheck(getattr(torch.ops.pruneengine, op).default, calls()[op])


def test_compiled_without_a_graph_break() -> None:
    def keep_best(weight: Tensor) -> Tensor:
        rows, _ = ops.weight_scores(weight)
        return ops.select_mask(rows[None], 2)

    weight = torch.nn.Parameter(normal(5, 6))
    compiled = torch.compile(keep_best, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(weight), keep_best(weight))


def test_parameters_give_results_without_a_graph() -> None:
    rows, _ = ops.weight_scores(torch.nn.Parameter(normal(5, 6)))
    assert not rows.requires_grad


W = torch.zeros(4, 6)
BAD = [
    (lambda: ops.activation_stats(W), ValueError, r"x has shape \[4, 6\]; expected \[N, T, C\]"),
    (lambda: ops.activation_stats(W[None].double()), TypeError, "x has dtype torch.float64"),
    (lambda: ops.gate_scores(W[None], W[None].half()), TypeError, "dx has dtype torch.float16; expected torch.float32"),
    (lambda: ops.gate_scores(W[None], W[None, :3]), ValueError, r"dx has shape \[1, 3, 6\]; expected \[1, 4, 6\]"),
    (lambda: ops.weight_scores(W.T), ValueError, r"weight has strides \(1, 6\)"),
    (lambda: ops.weight_scores(W, power=0), ValueError, "power is 0.0; expected a finite number > 0"),
    (lambda: ops.weight_scores(W, norm_power=-1), ValueError, "norm_power is -1.0"),
    (lambda: ops.weight_scores(W, torch.ones(4)), ValueError, r"norm has shape \[4\]; expected \[6\]"),
    (lambda: ops.weight_scores(W, torch.ones(6).half()), TypeError, "norm has dtype torch.float16"),
    (lambda: ops.weight_scores(W, torch.ones(6, device="meta")), ValueError, "norm is on meta; expected cpu"),
    (lambda: ops.taylor_scores(W, W.bfloat16()), TypeError, "gradient has dtype torch.bfloat16"),
    (lambda: ops.taylor_scores(W, W[:3]), ValueError, r"gradient has shape \[3, 6\]"),
    (lambda: ops.kth_value(W, 0), ValueError, "k is 0; expected 1 <= k <= 6"),
    (lambda: ops.select_mask(W, 7), ValueError, "k is 7; expected 0 <= k <= 6"),
    (lambda: ops.gather_rows(W, torch.tensor([4])), ValueError, "index holds 4; expected 0 <= index < 4"),
    (lambda: ops.gather_columns(W, torch.tensor([-1])), ValueError, "index holds -1; expected 0 <= index < 6"),
    (lambda: ops.gather_columns(W, torch.tensor([1.0])), TypeError, "index has dtype torch.float32"),
    (lambda: ops.gather_columns(W, torch.tensor([[1]])), ValueError, r"index has shape \[1, 1\]"),
    (lambda: ops.gather_rows(W.to(torch.complex128), torch.tensor([0])), TypeError, "expected one of 1, 2, 4 or 8"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_arguments_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_use_backend_as_a_call_and_as_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(
        backends, "_function", lambda backend, op: lambda *arguments: used.append(backend) or W[:, 0] + 1
    )
    with ops.use_backend("reference"):
        ops.kth_value(W, 1)
    ops.use_backend("reference")
    ops.kth_value(W, 1)
    ops.use_backend("auto")
    ops.kth_value(W, 1)
    default = "cpp" if ops.available_backends()["cpp"] == "available" else "reference"
    assert used == ["reference", "reference", default]


def test_a_backend_that_cannot_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend 'rocm': expected one of cuda, cpp, triton, reference, auto"):
        ops.use_backend("rocm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if extension.why_not_cpp() is None:
        with pytest.raises(
            RuntimeError, match=r"backend 'cuda' is not available: (torch sees no|the extension was built)"
        ):
            ops.use_backend("cuda")
    with running("triton"), pytest.raises(ValueError, match="gather_rows on cpu: backend 'triton' cannot run it"):
        ops.gather_rows(W, torch.tensor([0]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_errors_arrive_as_exceptions_with_the_runtime_s_words() -> None:
    module = extension.load()
    if isinstance(module, str) or not hasattr(module, "cuda"):
        pytest.skip("the extension was built without CUDA")
    with pytest.raises(RuntimeError, match=r"^kth_value: .*(CUDA|driver)"):
        module.cuda.kth_value(0, 4, module.Dtype.float32, 1, 4, 1, 0, 0, 0)
