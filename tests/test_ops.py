"""The contract around the ops: threads, opcheck, torch.compile, errors, choice of backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pruneengine import backends, extension, ops
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
