"""Every Triton kernel against float64, on the device or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from pruneengine.kernels.activation_stats import activation_stats  # noqa: E402
from pruneengine.kernels.gate_scores import gate_scores  # noqa: E402
from pruneengine.kernels.taylor_scores import taylor_scores  # noqa: E402
from pruneengine.kernels.weight_scores import weight_scores  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = [
    pytest.mark.skipif(
        DEVICE == "cpu" and not triton.knobs.runtime.interpret, reason="no CUDA device and TRITON_INTERPRET is not set"
    ),
    # Numpy's word on log2(0), which the kernels want to be -inf.
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
]

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True, params=[True], ids=["poisoned"])
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory a kernel leaves unwritten reads as NaN, or as the parameter where it is bool."""
    empty = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        out = empty(*args, **kwargs)
        return out.fill_(float("nan") if out.is_floating_point() else request.param)

    monkeypatch.setattr(torch, "empty", poisoned)


def rand(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(DEVICE)


def check_sum(got: Tensor, terms: Tensor, dim: int) -> None:
    """``got`` is the float32 sum of the float64 terms, to a few roundings of the sum of their magnitudes."""
    assert got.dtype == torch.float32
    assert got.shape == terms.sum(dim).shape
    error = (got.double() - terms.sum(dim)).abs()
    assert bool((error <= 2e-6 * terms.abs().sum(dim)).all()), f"largest error {error.max().item()}"


def check_stats(x: Tensor) -> None:
    total, squares, peak = activation_stats(x)
    check_sum(total, x.double(), 1)
    check_sum(squares, x.double().square(), 1)
    assert torch.equal(peak.double(), x.double().abs().amax(1))


# Three blocks of channels and three chunks of tokens; ten chunks; none full; the smallest.
ACTIVATIONS = [(2, 150, 301), (1, 600, 5), (3, 37, 129), (1, 1, 1)]
# Four blocks of columns; three stripes of rows; none full; the smallest.
WEIGHTS = [(37, 1001), (70, 300), (5, 3), (1, 1)]


@dtypes
@pytest.mark.parametrize("shape", ACTIVATIONS, ids=str)
def test_activation_stats(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check_stats(rand(*shape, dtype=dtype, scale=200.0))


@dtypes
@pytest.mark.parametrize("shape", ACTIVATIONS, ids=str)
def test_gate_scores(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, dx = rand(*shape, dtype=dtype, scale=200.0), rand(*shape, dtype=dtype, scale=300.0).flip(1)
    check_sum(gate_scores(x, dx), x.double() * dx.double(), 1)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "token-first": lambda x: x.reshape(90, 3, 140).transpose(0, 1),
    "channel-first": lambda x: x.transpose(1, 2),
    "every-other": lambda x: x[:, 1::2, ::2],
    "broadcast": lambda x: x[:1].expand(2, -1, -1),
}


@pytest.mark.parametrize("view", STRIDES.values(), ids=STRIDES.keys())
def test_activations_of_any_strides(view: Callable[[Tensor], Tensor]) -> None:
    x, dx = rand(3, 90, 140, dtype=torch.bfloat16), rand(3, 90, 140, dtype=torch.bfloat16).flip(1)
    check_stats(view(x))
    for left, right in ((view(x), view(dx)), (view(x), view(dx).contiguous()), (view(x).contiguous(), view(dx))):
        check_sum(gate_scores(left, right), left.double() * right.double(), 1)


def test_a_sample_is_independent_of_the_others() -> None:
    x = rand(3, 150, 40, dtype=torch.float32)
    for together, alone in zip(activation_stats(x), activation_stats(x[1:2]), strict=True):
        assert torch.equal(together[1:2], alone)
    assert torch.equal(gate_scores(x, x)[1:2], gate_scores(x[1:2], x[1:2]))


@pytest.mark.parametrize("op", ["activation_stats", "gate_scores"])
def test_chunks_do_not_depend_on_the_number_of_samples(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At sizes where a chunk is neither the shortest nor the longest; nothing is launched."""
    module = import_module(f"pruneengine.kernels.{op}")
    chunks = []

    class Recorder:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *args, CHUNK, **kwargs: chunks.append(CHUNK)

    monkeypatch.setattr(module, f"{op}_kernel", Recorder())
    for samples in (1, 64):
        x = torch.empty(samples, 2048, 4096, device="meta")
        getattr(module, op)(*[x] * (2 if op == "gate_scores" else 1))
    assert chunks == [256, 256]


def test_nan_shows_in_every_statistic() -> None:
    x = rand(1, 70, 5, dtype=torch.bfloat16)
    x[0, 66, 3] = float("nan")
    x[0, 66, 4] = -float("inf")
    for statistic in activation_stats(x):
        assert statistic.isnan().nonzero().tolist() == [[0, 3]]
        assert statistic.isinf().nonzero().tolist() == [[0, 4]]


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3), (2, 4, 0)], ids=str)
def test_empty_activations(shape: tuple[int, int, int]) -> None:
    x = rand(*shape, dtype=torch.bfloat16)
    expected = torch.zeros(shape[0], shape[2], device=DEVICE)
    for statistic in (*activation_stats(x), gate_scores(x, x)):
        assert statistic.dtype == torch.float32
        assert torch.equal(statistic, expected)


@dtypes
@pytest.mark.parametrize("shape", WEIGHTS, ids=str)
@pytest.mark.parametrize("with_norm", [False, True], ids=["plain", "norm"])
def test_weight_scores(shape: tuple[int, int], dtype: torch.dtype, with_norm: bool) -> None:
    weight = rand(*shape, dtype=dtype, scale=200.0)
    norm = rand(shape[1], dtype=torch.float32).abs() if with_norm else None
    scores = weight.double().abs() * (norm.double() if with_norm else 1.0)
    rows, columns = weight_scores(weight, norm)
    check_sum(rows, scores, 1)
    check_sum(columns, scores, 0)


@pytest.mark.parametrize(("power", "norm_power"), [(2, 1), (1.0, 2.0), (0.5, 3.0), (1.7, 0.3)])
def test_weight_scores_to_a_power(power: float, norm_power: float) -> None:
    weight, norm = rand(33, 301, dtype=torch.bfloat16), rand(602, dtype=torch.float32).abs()[::2]
    weight[:, 7] = 0.0
    weight[4] = 0.0
    norm[9] = 0.0
    scores = weight.double().abs().pow(power) * norm.double().pow(norm_power)
    rows, columns = weight_scores(weight, norm, power, norm_power)
    check_sum(rows, scores, 1)
    check_sum(columns, scores, 0)
    assert rows[4] == 0
    assert columns[[7, 9]].tolist() == [0, 0]


def check_taylor(weight: Tensor, gradient: Tensor) -> None:
    product = weight.double() * gradient.double()
    forms = torch.stack([product, product.abs(), product.square()])
    rows, columns = taylor_scores(weight, gradient)
    check_sum(rows, forms, 2)
    check_sum(columns, forms, 1)


@dtypes
@pytest.mark.parametrize("shape", WEIGHTS, ids=str)
def test_taylor_scores(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, gradient = rand(*shape, dtype=dtype, scale=200.0), rand(*shape, dtype=dtype, scale=300.0).flip(0)
    check_taylor(weight, gradient)
    check_taylor(weight, gradient.float() / 3)


def test_weights_with_a_row_stride() -> None:
    wide = rand(66, 140, dtype=torch.bfloat16)
    check_taylor(wide[:, 2:135], wide[:, 5:138])
    check_taylor(wide[::2, 3:], wide[:33, :-3])
    rows, columns = weight_scores(wide[::2, 3:])
    check_sum(rows, wide[::2, 3:].double().abs(), 1)
    check_sum(columns, wide[::2, 3:].double().abs(), 0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
def test_empty_weights(shape: tuple[int, int]) -> None:
    weight = rand(*shape, dtype=torch.float16)
    assert [s.tolist() for s in weight_scores(weight)] == [[0.0] * n for n in shape]
    assert [s.tolist() for s in taylor_scores(weight, weight)] == [[[0.0] * n] * 3 for n in shape]


@pytest.mark.gpu
def test_two_runs_agree_bit_for_bit() -> None:
    x, weight = rand(4, 2000, 1000, dtype=torch.bfloat16), rand(2000, 3000, dtype=torch.bfloat16)

    def run() -> list[Tensor]:
        sums = [*activation_stats(x), gate_scores(x, x.flip(1)), *weight_scores(weight, None, 0.7)]
        return [*sums, *taylor_scores(weight, weight.flip(0))]

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))
