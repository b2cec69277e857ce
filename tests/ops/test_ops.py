"""The contract around the ops: threads, opcheck, torch.compile, errors, choice of backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.ops import backends, extension
from tests.helpers.ops_harness import (
    DTYPES,
    OPS,
    assert_near,
    double,
    normal,
    poisoned,  # noqa: F401 - a fixture
    running,
    threads,
)


class Subclass(Tensor):
    """A tensor of another class, as a sharded one is."""


W, G, N = normal(8, 12), normal(8, 12, seed=1), normal(12).abs()
X, INDEX = normal(2, 3, 12), torch.arange(4)
CALLS = {
    "activation_stats": (X,),
    "gate_scores": (X, X.clone()),
    "weight_scores": (W, N),
    "taylor_scores": (W, G),
    "block_moments": (W, N),
    "kth_value": (W, 3),
    "select_mask": (W, 3, N),
    "kth_value_global": ([W, G], 3),
    "select_mask_global": ([W, G], 3, [N, N]),
    "nm_mask": (W, 2, 4, N),
    "nm_apply": (W, 2, 4),
    "quantile_codes": (W, N),
    "masked_copy": (W, torch.zeros(8, 12, dtype=torch.uint8), 3, torch.empty(8, 12)),
    "gather_columns": (W, INDEX),
    "gather_rows": (W, INDEX),
    "compact_layer": ([W, G], [INDEX, INDEX], [1, 0]),
}


def places(arguments):
    """Yield the arguments with one tensor at a time replaced by one of a subclass."""
    for place, value in enumerate(arguments):
        several = value if isinstance(value, list) else [value]
        for inner, tensor in enumerate(several):
            if isinstance(tensor, Tensor):
                odd = [*several[:inner], tensor.as_subclass(Subclass), *several[inner + 1 :]]
                yield (*arguments[:place], odd if isinstance(value, list) else odd[0], *arguments[place + 1 :])


@pytest.mark.parametrize("op", CALLS)
def test_a_tensor_of_a_subclass_is_refused(op):
    call = getattr(ops, op)
    call(*CALLS[op])
    call(*(torch.nn.Parameter(a, False) if isinstance(a, Tensor) else a for a in CALLS[op]))
    for arguments in places(CALLS[op]):
        with pytest.raises(TypeError, match=r"is a Subclass; expected a plain torch\.Tensor"):
            call(*arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_thread_and_two_agree_to_the_bit(dtype: torch.dtype) -> None:
    """Above two megabytes, where the second thread is really used."""
    weight, other = normal(601, 4099, dtype=dtype), normal(601, 4099, dtype=dtype, seed=1)
    index = torch.randperm(4099)[:2000]

    norm = normal(4099, seed=2).abs()

    def everything() -> list[Tensor]:
        with running("cpp"):
            codes = ops.quantile_codes(weight, norm)
            return [
                *ops.activation_stats(weight[None]),
                ops.gate_scores(weight[None], other[None]),
                *ops.weight_scores(weight, norm, power=(0.7, 1.0, 2.0)),
                *ops.taylor_scores(weight, other),
                *ops.taylor_scores(weight, other, forms=("absolute",)),
                *ops.block_moments(weight, norm, thresholds=(0.1, 1.0)),
                ops.kth_value(weight, 1000),
                ops.select_mask(weight, 1000, norm, bits=True),
                ops.kth_value_global([weight, other], 300_000),
                *ops.select_mask_global([weight, other], 300_000, [norm, norm]),
                ops.nm_mask(weight[:, :4096], 2, 4, norm[:4096]),
                ops.nm_apply(weight[:, :4096], 3, 8),
                codes,
                ops.masked_copy(weight, codes, 100, torch.empty_like(weight)),
                ops.gather_columns(weight, index),
                ops.gather_rows(weight.T.contiguous(), index),
                *ops.compact_layer([weight, other.T.contiguous()], [index, index], [1, 0]),
            ]

    with threads(1):
        alone = everything()
    with threads(2):
        together = everything()
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert_near(alone[0], double(weight)[None].sum(1), np.abs(double(weight))[None].sum(1))


def calls() -> dict[str, tuple]:
    """Arguments of every op as it is registered."""
    weight, x, index, norm = normal(5, 8), normal(2, 3, 4), torch.tensor([3, 0]), torch.rand(8)
    delta, codes = normal(2, 3, 5), torch.zeros(5, 8, dtype=torch.uint8)
    return {
        "activation_stats": (x,),
        "gate_scores": (x, x.clone()),
        "weight_scores": (weight, norm[None].repeat(2, 1), [1.0, 2.0], [2.0, 1.0]),
        "taylor_scores": (weight, weight.clone(), False),
        "taylor_scores_outer": (weight, delta, normal(2, 3, 8), True),
        "block_moments": (weight, norm, 1.0, 1.0, torch.tensor([0.5])),
        "kth_value": (weight, 2, None),
        "select_mask": (weight, 2, norm, True),
        "kth_value_global": ([weight, weight[:2]], 3, None),
        "select_mask_global": ([weight, weight[:2].clone()], 3, [norm, norm.clone()], False),
        "nm_mask": (weight, 2, 4, norm),
        "nm_apply": (weight, 2, 4, None, torch.empty(5, 8)),
        "quantile_codes": (weight, norm),
        "masked_copy": (weight, codes, 1, torch.empty(5, 8)),
        "gather_rows": (weight, index),
        "gather_columns": (weight, index),
        "compact_layer": (
            [weight, weight[0]],
            [index, index.clone()],
            [1, 0],
            [0, 64],
            torch.empty(128, dtype=torch.uint8),
        ),
    }


def test_every_op_is_registered_and_checked() -> None:
    assert calls().keys() == OPS


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


W, NORM, INDEX, X = torch.zeros(4, 6), torch.ones(6), torch.tensor([0]), torch.zeros(2, 3, 6)
CODES = torch.zeros(4, 6, dtype=torch.uint8)
DELTA = torch.zeros(2, 3, 4)
SMALL, ARENA = torch.empty(8, dtype=torch.uint8), torch.empty(128, dtype=torch.uint8)
BAD = [
    (lambda: ops.activation_stats(W), ValueError, r"x has shape \[4, 6\]; expected \[N, T, C\]"),
    (lambda: ops.activation_stats(X.double()), TypeError, "x has dtype torch.float64"),
    (lambda: ops.gate_scores(X, X.half()), TypeError, "dx has dtype torch.float16; expected torch.float32"),
    (lambda: ops.gate_scores(X, X[:, :2]), ValueError, r"dx has shape \[2, 2, 6\]; expected \[2, 3, 6\]"),
    (lambda: ops.weight_scores(W.T), ValueError, r"weight has strides \(1, 6\)"),
    (lambda: ops.weight_scores(W, power=0.0), ValueError, "power is 0.0; expected a finite number > 0"),
    (lambda: ops.weight_scores(W, NORM, norm_power=float("inf")), ValueError, "norm_power is inf"),
    (lambda: ops.weight_scores(W, NORM[:5]), ValueError, r"norm has shape \[1, 5\]; expected \[1, 6\]"),
    (lambda: ops.weight_scores(W, NORM.half()), TypeError, "norm has dtype torch.float16; expected float32"),
    (lambda: ops.weight_scores(W, torch.ones(6, device="meta")), ValueError, "norm is on meta; expected cpu"),
    (lambda: ops.weight_scores(W, power=(1, 2), norm_power=(1,)), ValueError, r"have \[2, 1\] scores"),
    (lambda: ops.weight_scores(W, row_unit=3), ValueError, "row_unit is 3; expected a divisor of 4"),
    (lambda: ops.taylor_scores(W, W.bfloat16()), TypeError, "gradient has dtype torch.bfloat16"),
    (lambda: ops.taylor_scores(W, W[:3]), ValueError, r"gradient has shape \[3, 6\]"),
    (lambda: ops.taylor_scores(W, W, ("first",)), ValueError, "forms holds 'first'; expected some of signed"),
    (lambda: ops.taylor_scores_outer(W, DELTA[:, :2], X), ValueError, r"delta has shape \[2, 2, 4\]"),
    (lambda: ops.taylor_scores_outer(W, DELTA, X.half()), TypeError, "delta has dtype torch.float32; expected"),
    (lambda: ops.block_moments(W, thresholds=range(17)), ValueError, r"thresholds has shape \[17\]"),
    (lambda: ops.kth_value(W, 0), ValueError, "k is 0; expected 1 <= k <= 6"),
    (lambda: ops.select_mask(W, 7), ValueError, "k is 7; expected 0 <= k <= 6"),
    (lambda: ops.select_mask(W, 1, NORM[:3]), ValueError, r"norm has shape \[3\]; expected \[6\]"),
    (lambda: ops.kth_value_global([], 1), ValueError, "matrices is empty"),
    (lambda: ops.kth_value_global([W, W], 49), ValueError, "k is 49; expected 1 <= k <= 48"),
    (lambda: ops.select_mask_global([W, W.half()], 1), TypeError, r"matrices\[1\] has dtype torch.float16"),
    (lambda: ops.select_mask_global([W, W], 1, [NORM]), ValueError, "norms holds 1 tensors; expected 2"),
    (lambda: ops.nm_mask(W, 3, 2), ValueError, "n:m is 3:2"),
    (lambda: ops.nm_mask(W, 2, 4), ValueError, "m is 4; expected a divisor of 6"),
    (lambda: ops.nm_apply(W, 1, 3, out=W.half()), TypeError, "out has dtype torch.float16; expected torch.float32"),
    (lambda: ops.nm_apply(W, 1, 3, out=W[:3]), ValueError, r"out has shape \[3, 6\]; expected \[4, 6\], as weight"),
    (lambda: ops.nm_apply(W, 1, 3, out=W.new_empty(4, 7)[:, 1:]), ValueError, r"out has strides \(7, 1\)"),
    (lambda: ops.nm_apply(W, 1, 33), ValueError, "n:m is 1:33; expected n kept of m, 0 <= n <= m and 1 <= m <= 32"),
    (lambda: ops.quantile_codes(W.T), ValueError, "scores has strides"),
    (lambda: ops.masked_copy(W, CODES, 257, W), ValueError, "level is 257; expected 0 <= level <= 256"),
    (lambda: ops.masked_copy(W, W, 1, W), TypeError, "codes has dtype torch.float32; expected uint8"),
    (lambda: ops.masked_copy(W, CODES, 1, W.half()), TypeError, "out has dtype torch.float16; expected float32"),
    (lambda: ops.masked_copy(W, CODES, 1, W[:2]), ValueError, r"out has shape \[2, 6\]; expected \[4, 6\]"),
    (lambda: ops.gather_rows(W, torch.tensor([4])), ValueError, "index holds 4; expected 0 <= index < 4"),
    (lambda: ops.gather_columns(W, torch.tensor([-1])), ValueError, "index holds -1; expected 0 <= index < 6"),
    (lambda: ops.gather_columns(W, torch.tensor([1.0])), TypeError, "index has dtype torch.float32; expected int64"),
    (lambda: ops.gather_columns(W, torch.tensor([[1]])), ValueError, r"index has shape \[1, 1\]"),
    (lambda: ops.gather_rows(W.to(torch.complex128), INDEX), TypeError, "expected one of 1, 2, 4 or 8"),
    (lambda: ops.compact_layer([W], [INDEX], []), ValueError, "1 weights, 1 indices, 0 axes"),
    (lambda: ops.compact_layer([], [], []), ValueError, "0 weights, 0 indices, 0 axes"),
    (lambda: ops.compact_layer([W], [INDEX], [2]), ValueError, "axis is 2; expected 0"),
    (lambda: ops.compact_layer([W[0]], [INDEX], [1]), ValueError, r"weight has shape \[6\]; expected \[R, C\]"),
    (
        lambda: ops.compact_layer([W], [INDEX], [0], SMALL),
        ValueError,
        r"arena has shape \[8\]; expected at least \[64\]",
    ),
    (lambda: torch.ops.pruneengine.compact_layer([W], [INDEX], [0], [8], ARENA), ValueError, "offset is 8; expected"),
    (lambda: torch.ops.pruneengine.compact_layer([W], [INDEX], [0], [128], ARENA), ValueError, "offset is 128"),
    (lambda: torch.ops.pruneengine.compact_layer([W], [INDEX], [0], [], ARENA), ValueError, "offsets holds 0 numbers"),
    (lambda: torch.ops.pruneengine.weight_scores(W, None, [1.0], []), ValueError, "1 powers, 0 norm_powers"),
    (lambda: ops.compact_layer([W], [INDEX + 6], [1]), ValueError, "index holds 6; expected 0 <= index < 6"),
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
        module.cuda.kth_value(0, 4, module.Dtype.float32, 1, 4, 0, 1, 0, 0, 0)
