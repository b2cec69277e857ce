"""Every Triton kernel against float64, on the device or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from pruneengine.kernels.activation_stats import activation_stats  # noqa: E402
from pruneengine.kernels.block_moments import block_moments  # noqa: E402
from pruneengine.kernels.gate_scores import gate_scores  # noqa: E402
from pruneengine.kernels.taylor_scores import taylor_scores  # noqa: E402
from pruneengine.kernels.taylor_scores_outer import taylor_scores_outer  # noqa: E402
from pruneengine.kernels.weight_scores import weight_scores  # noqa: E402
from pruneengine.ops import reference  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = [
    pytest.mark.skipif(
        DEVICE == "cpu" and not triton.knobs.runtime.interpret, reason="no CUDA device and TRITON_INTERPRET is not set"
    ),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
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
    norms = rand(1, shape[1], dtype=torch.float32).abs() if with_norm else None
    scores = weight.double().abs() * (norms.double() if with_norm else 1.0)
    rows, columns = weight_scores(weight, norms, [1.0], [1.0])
    check_sum(rows, scores[None], 2)
    check_sum(columns, scores[None], 1)


POWERS, NORM_POWERS = [2.0, 1.0, 0.5, 1.7, 1.0, 3.0], [1.0, 2.0, 3.0, 0.3, 1.0, 1.0]


@pytest.mark.parametrize("count", [1, 3, 6], ids=["one", "one launch", "two launches"])
@pytest.mark.parametrize("with_norm", [False, True], ids=["plain", "norm"])
def test_several_weight_scores(count: int, with_norm: bool) -> None:
    weight, norms = rand(33, 301, dtype=torch.bfloat16), rand(count, 602, dtype=torch.float32).abs()[:, ::2]
    weight[:, 7] = 0.0
    weight[4] = 0.0
    norms[:, 9] = 0.0
    powers, norm_powers = POWERS[:count], NORM_POWERS[:count]
    factors = torch.stack([norm.double().pow(power) for norm, power in zip(norms, norm_powers, strict=True)])
    scores = torch.stack([weight.double().abs().pow(power) for power in powers])
    if with_norm:
        scores *= factors[:, None, :]
    rows, columns = weight_scores(weight, norms if with_norm else None, powers, norm_powers)
    check_sum(rows, scores, 2)
    check_sum(columns, scores, 1)
    assert not rows[:, 4].any()
    assert not columns[:, [7, 9] if with_norm else [7]].any()


def check_taylor(weight: Tensor, gradient: Tensor) -> None:
    product = weight.double() * gradient.double()
    forms = torch.stack([product, product.abs(), product.square()])
    rows, columns = taylor_scores(weight, gradient)
    check_sum(rows, forms, 2)
    check_sum(columns, forms, 1)
    rows, columns = taylor_scores(weight, gradient, absolute_only=True)
    check_sum(rows, forms[1:2], 2)
    check_sum(columns, forms[1:2], 1)


@dtypes
@pytest.mark.parametrize("shape", WEIGHTS, ids=str)
def test_taylor_scores(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, gradient = rand(*shape, dtype=dtype, scale=200.0), rand(*shape, dtype=dtype, scale=300.0).flip(0)
    check_taylor(weight, gradient)
    check_taylor(weight, gradient.float() / 3)


def check_outer(weight: Tensor, delta: Tensor, x: Tensor) -> None:
    """Signed sums to a few roundings of what was added up, products and all."""
    for per_sample in (False, True):
        d, s = (t.double() if per_sample else t.double().flatten(0, 1)[None] for t in (delta, x))
        product = weight.double() * (d.transpose(1, 2) @ s)
        size = weight.double().abs() * (d.abs().transpose(1, 2) @ s.abs())
        forms = torch.stack([product, product.abs(), product.square()], 1)
        sizes = torch.stack([size, size, size.square()], 1)
        for got, dim in zip(taylor_scores_outer(weight, delta, x, per_sample), (3, 2), strict=True):
            assert got.dtype == torch.float32
            assert got.shape == forms.sum(dim).shape
            error = (got.double() - forms.sum(dim)).abs()
            assert bool((error <= 2e-6 * sizes.sum(dim)).all()), f"largest error {error.max().item()}"


# Tiles with a remainder on each axis; whole large tiles in two groups' rows; the smallest.
OUTER = [(2, 37, 70, 301), (2, 130, 272, 288), (1, 1, 1, 1)]
TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "token-first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "channel-first": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "every-other": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "broadcast": lambda t: t[:1].expand(3, -1, -1),
}


@dtypes
@pytest.mark.parametrize("shape", OUTER, ids=str)
def test_taylor_scores_outer(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    samples, tokens, rows, columns = shape
    delta, x = rand(samples, tokens, rows, dtype=dtype), rand(samples, tokens, columns, dtype=dtype)
    check_outer(rand(rows, columns, dtype=dtype), delta, x)


@pytest.mark.parametrize("view", TOKENS.values(), ids=TOKENS.keys())
def test_taylor_scores_outer_of_any_strides(view: Callable[[Tensor], Tensor]) -> None:
    delta, x = view(rand(3, 21, 32, dtype=torch.float16)), view(rand(3, 21, 48, dtype=torch.float16))
    check_outer(rand(32, 48, dtype=torch.bfloat16), delta, x)


def test_taylor_scores_outer_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("pruneengine.kernels.taylor_scores_outer"), "MAX_TILES", 12)
    check_outer(*(rand(*shape, dtype=torch.float32) for shape in ((40, 150), (5, 9, 40), (5, 9, 150))))


def check_moments(weight: Tensor, norm: Tensor | None, power: float, norm_power: float, thresholds: Tensor) -> None:
    """Sums to a few roundings against float64, extremes and counts of the float32 scores exactly."""
    moments, above, histogram = block_moments(weight, norm, power, norm_power, thresholds)
    assert (moments.dtype, above.dtype, histogram.dtype) == (torch.float64, torch.int64, torch.int64)
    s = weight.double().abs().pow(power) * (1.0 if norm is None else norm.double().pow(norm_power))
    log = torch.where(s > 0, s, 1.0).log()
    terms = [torch.ones_like(s), s, s**2, s**3, s**4, (s > 0).double(), log, log**2, s * log, s**2 * log]
    expected, size = (torch.stack([t.sum() for t in values]) for values in (terms, [t.abs() for t in terms]))
    sums = torch.cat([moments[:5], moments[7:]])
    assert bool(((sums - expected).abs() <= 2e-6 * size).all()), (sums - expected) / size
    torch.testing.assert_close(moments[5:7], torch.stack(s.aminmax()), rtol=1e-6, atol=0.0)
    assert int(histogram.sum()) == weight.numel()
    if power in (1.0, 2.0):
        exact = reference.block_moments(weight, norm, power, norm_power, thresholds)
        assert torch.equal(moments[[0, 5, 6, 7]], exact[0][[0, 5, 6, 7]])
        assert torch.equal(above, exact[1])
        assert torch.equal(histogram, exact[2])


# Two blocks of columns and two stripes of rows; none full. The interpreter is slow on this one.
@dtypes
@pytest.mark.parametrize("shape", [(37, 301), (5, 3), (1, 1)], ids=str)
@pytest.mark.parametrize(("power", "norm_power"), [(1.0, 1.0), (2.0, 0.5), (0.7, 2.0)])
def test_block_moments(shape: tuple[int, int], dtype: torch.dtype, power: float, norm_power: float) -> None:
    weight, norm = rand(*shape, dtype=dtype, scale=0.02), rand(2 * shape[1], dtype=torch.float32).abs()[::2] + 0.1
    check_moments(weight, norm, power, norm_power, torch.tensor([-1.0, 0.0, 0.02], device=DEVICE))


def test_moments_of_scores_beside_the_window() -> None:
    """Zeros, subnormals, what the histogram clamps, and scores far above those of the first row."""
    weight = rand(20, 200, dtype=torch.float32)
    weight[:, 5] = 0.0
    weight[3] *= 1e-40
    weight[7] *= 1e-9
    weight[11] *= 1e-20
    weight[13] *= 1e7
    thresholds = torch.linspace(-0.5, 3.0, 16, device=DEVICE)
    check_moments(weight, None, 1.0, 1.0, thresholds)


def test_weights_with_a_row_stride() -> None:
    wide = rand(66, 140, dtype=torch.bfloat16)
    check_taylor(wide[:, 2:135], wide[:, 5:138])
    check_taylor(wide[::2, 3:], wide[:33, :-3])
    rows, columns = weight_scores(wide[::2, 3:], None, [1.0], [1.0])
    check_sum(rows, wide[::2, 3:].double().abs()[None], 2)
    check_sum(columns, wide[::2, 3:].double().abs()[None], 1)
    check_moments(wide[::2, 3:], None, 1.0, 1.0, torch.zeros(0, device=DEVICE))
    check_outer(wide[::2, 3:], rand(2, 9, 33, dtype=torch.float32), rand(2, 9, 137, dtype=torch.float32))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
def test_empty_weights(shape: tuple[int, int]) -> None:
    weight = rand(*shape, dtype=torch.float16)
    assert [s.tolist() for s in weight_scores(weight, None, [1.0, 0.5], [1.0, 1.0])] == [[[0.0] * n] * 2 for n in shape]
    assert [s.tolist() for s in taylor_scores(weight, weight)] == [[[0.0] * n] * 3 for n in shape]
    assert [s.tolist() for s in taylor_scores(weight, weight, True)] == [[[0.0] * n] for n in shape]
    delta, x = (rand(2, 5, n, dtype=torch.float16) for n in shape)
    assert [s.tolist() for s in taylor_scores_outer(weight, delta, x, True)] == [[[[0.0] * n] * 3] * 2 for n in shape]
    moments, above, histogram = block_moments(weight, None, 1.0, 1.0, torch.zeros(2, device=DEVICE))
    assert moments.tolist() == [0.0] * 5 + [float("inf"), -float("inf")] + [0.0] * 5
    assert above.tolist() == [0, 0]
    assert not histogram.any()


@pytest.mark.parametrize(("samples", "tokens"), [(0, 4), (3, 0)], ids=str)
def test_taylor_scores_outer_of_nothing(samples: int, tokens: int) -> None:
    weight = rand(4, 6, dtype=torch.float16)
    delta, x = rand(samples, tokens, 4, dtype=torch.float16), rand(samples, tokens, 6, dtype=torch.float16)
    for per_sample in (False, True):
        for sums, size in zip(taylor_scores_outer(weight, delta, x, per_sample), weight.shape, strict=True):
            assert torch.equal(sums, torch.zeros(samples if per_sample else 1, 3, size, device=DEVICE))


@pytest.mark.gpu
def test_two_runs_agree_bit_for_bit() -> None:
    x, weight = rand(4, 2000, 1000, dtype=torch.bfloat16), rand(2000, 3000, dtype=torch.bfloat16)
    delta, y = rand(4, 300, 2000, dtype=torch.bfloat16), rand(4, 300, 3000, dtype=torch.bfloat16)

    def run() -> list[Tensor]:
        sums = [*activation_stats(x), gate_scores(x, x.flip(1)), *weight_scores(weight, None, [0.7, 2.0], [1.0, 1.0])]
        sums += [*block_moments(weight, None, 1.0, 1.0, weight.new_ones(2, dtype=torch.float32))]
        sums += taylor_scores_outer(weight, delta, y, True)
        return [*sums, *taylor_scores(weight, weight.flip(0))]

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))
