"""The Triton kernels that select and sparsify, against stable sorts in float64, on the device or interpreted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")

from pruneengine.kernels import quantile_codes as quantile_codes_module  # noqa: E402
from pruneengine.kernels import select_global as select_global_module  # noqa: E402
from pruneengine.kernels.masked_copy import masked_copy  # noqa: E402
from pruneengine.kernels.nm_mask import nm_apply, nm_mask  # noqa: E402
from pruneengine.kernels.quantile_codes import quantile_codes  # noqa: E402
from pruneengine.kernels.select import kth_value, select_mask  # noqa: E402
from pruneengine.kernels.select_global import kth_value_global, select_mask_global  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = [
    pytest.mark.skipif(
        DEVICE == "cpu" and not triton.knobs.runtime.interpret, reason="no CUDA device and TRITON_INTERPRET is not set"
    ),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
norms = pytest.mark.parametrize("with_norm", [False, True], ids=["plain", "norm"])


@pytest.fixture(autouse=True, params=[0xFF], ids=["poisoned"])
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory a kernel leaves unwritten holds the parameter in every byte: NaN, -1, or no valid bool."""
    empty = torch.empty

    def poisoned(*args, **kwargs) -> Tensor:
        out = empty(*args, **kwargs)
        out.view(torch.uint8).fill_(request.param)
        return out

    monkeypatch.setattr(torch, "empty", poisoned)


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).to(DEVICE)


def norm_of(columns: int, with_norm: bool = True) -> Tensor | None:
    """A few zeros and a stride, too."""
    return rand(2 * columns).relu()[::2] if with_norm else None


def with_ties(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Rows of few values, of signed zeros alone, of one value, of distinct values, and of extremes."""
    scores = (rand(rows, columns) * 3).round()
    scores[1 % rows] = rand(1, columns)[0].sign() * 0.0
    scores[2 % rows] = -1.5
    scores[3 % rows] = rand(1, columns)[0]
    extremes = torch.tensor([float("inf"), -float("inf"), torch.finfo(dtype).tiny, -torch.finfo(dtype).tiny, 0.0, -0.0])
    scores[4 % rows] = extremes.to(DEVICE).repeat(columns // 6 + 1)[:columns]
    return scores.to(dtype)


def finite_with_ties(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """The same without the infinities, which a factor of zero makes NaN."""
    return with_ties(rows, columns, dtype).clamp(-60000.0, 60000.0)


def scores_of(values: Tensor, norm: Tensor | None) -> Tensor:
    """float64 on the CPU; the product is rounded to float32 first, for ties are ties in that."""
    return (values if norm is None else values.float().abs() * norm).double().cpu() + 0.0


def smallest(scores: Tensor, k: int) -> Tensor:
    """True at the k that a stable sort puts first."""
    order = scores.sort(dim=1, stable=True).indices
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order[:, :k], True)


def unpacked(mask: Tensor, columns: int) -> Tensor:
    """Bits as bool ``[R, C]``; those past the end must be zero."""
    assert mask.dtype == torch.uint8
    bits = (mask.cpu()[:, :, None] >> torch.arange(8) & 1).bool().flatten(1)
    assert not bits[:, columns:].any()
    return bits[:, :columns]


def check_select(values: Tensor, k: int, norm: Tensor | None = None) -> None:
    scores = scores_of(values, norm)
    expected = smallest(scores, k)
    mask = select_mask(values, k, norm)
    assert mask.dtype == torch.bool
    assert torch.equal(mask.view(torch.uint8).cpu(), expected.view(torch.uint8))
    assert torch.equal(unpacked(select_mask(values, k, norm, bits=True), values.shape[1]), expected)
    if k > 0:
        kth = kth_value(values, k, norm)
        assert kth.dtype == torch.float32
        assert torch.equal(kth.cpu().double(), scores.sort(dim=1).values[:, k - 1])
        assert not kth.signbit().logical_and(kth == 0).any()


@dtypes
@norms
@pytest.mark.parametrize("poison", [0, 0xFF], indirect=True, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.0])
def test_select(share: float, dtype: torch.dtype, with_norm: bool) -> None:
    scores = finite_with_ties(5, 1001, dtype) if with_norm else with_ties(5, 1001, dtype)
    check_select(scores, round(share * 1001), norm_of(1001, with_norm))


@dtypes
@norms
def test_select_on_rows_longer_than_a_block(dtype: torch.dtype, with_norm: bool) -> None:
    # Three blocks of 8192; ties on both sides of their borders, the quota ending within the last.
    check_select(finite_with_ties(4, 16500, dtype), 16450, norm_of(16500, with_norm))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (7, 256)], ids=str)
def test_select_on_small_rows(shape: tuple[int, int]) -> None:
    for k in sorted({0, 1, shape[1] // 2, shape[1]}):
        check_select(with_ties(*shape, torch.bfloat16), k)


def test_select_of_rows_with_a_stride() -> None:
    check_select(with_ties(10, 40, torch.float32)[::2, 3:33], 11)
    check_select(finite_with_ties(10, 40, torch.float16)[::2, 3:33], 11, norm_of(30))


def test_select_of_no_rows_or_columns() -> None:
    for shape, k in (((0, 5), 2), ((4, 0), 0)):
        mask = select_mask(torch.zeros(shape, device=DEVICE), k)
        assert (mask.dtype, mask.shape) == (torch.bool, shape)
    assert select_mask(torch.zeros(0, 9, device=DEVICE), 2, bits=True).shape == (0, 2)
    assert kth_value(torch.zeros(0, 5, device=DEVICE), 2).shape == (0,)


def check_global(matrices: list[Tensor], k: int, norms: list[Tensor] | None = None) -> None:
    pairs = zip(matrices, norms or [None] * len(matrices), strict=True)
    scores = torch.cat([scores_of(matrix, norm).flatten() for matrix, norm in pairs])[None]
    parts = smallest(scores, k)[0].split([matrix.numel() for matrix in matrices])
    masks, packed = (select_mask_global(matrices, k, norms, bits) for bits in (False, True))
    for matrix, part, mask, bits in zip(matrices, parts, masks, packed, strict=True):
        assert mask.dtype == torch.bool
        assert torch.equal(mask.view(torch.uint8).cpu(), part.view(matrix.shape).view(torch.uint8))
        assert torch.equal(unpacked(bits, matrix.shape[1]), part.view(matrix.shape))
    if k > 0:
        kth = kth_value_global(matrices, k, norms)
        assert kth.dtype == torch.float32
        assert kth.tolist() == [scores.sort().values[0, k - 1].item()]


@dtypes
@norms
def test_select_over_matrices(dtype: torch.dtype, with_norm: bool) -> None:
    # Empty ones, a strided one, one of a single value, and rows of whole bytes.
    matrices = [finite_with_ties(5, 301, dtype), rand(0, 5, dtype=dtype), finite_with_ties(9, 40, dtype)[::2, 3:33]]
    matrices += [
        torch.full((2, 2100), -1.5, dtype=dtype, device=DEVICE),
        rand(3, 0, dtype=dtype),
        rand(3, 64, dtype=dtype),
    ]
    norms = [norm_of(matrix.shape[1]) for matrix in matrices] if with_norm else None
    total = sum(matrix.numel() for matrix in matrices)
    for k in (0, total // 20, total // 2, total):
        check_global(matrices, k, norms)


def test_select_over_matrices_splits_the_ties_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two programs of four blocks and of one; the quota ends within a block of the first, and of the second.
    monkeypatch.setattr(select_global_module, "MIN_PROGRAMS", 2)
    for k in (3 * 2048 - 100, 5 * 2048 - 100):
        check_global([torch.zeros(5, 2048, device=DEVICE), torch.zeros(1, 7, device=DEVICE)], k)


def test_select_over_empty_matrices() -> None:
    masks = select_mask_global([torch.zeros(0, 5, device=DEVICE), torch.zeros(3, 0, device=DEVICE)], 0)
    assert [mask.shape for mask in masks] == [(0, 5), (3, 0)]


GROUPS = [(2, 4), (4, 8), (1, 1), (0, 1), (0, 4), (4, 4), (1, 2), (1, 3), (5, 12), (3, 16), (16, 32), (30, 31)]


@dtypes
@norms
@pytest.mark.parametrize(("n", "m"), GROUPS)
def test_nm(n: int, m: int, dtype: torch.dtype, with_norm: bool) -> None:
    columns = 13 * m
    weight = finite_with_ties(5, columns, dtype)
    norm = norm_of(columns, with_norm)
    for view in (weight, rand(4, columns + 3, dtype=dtype)[::2, 2:-1]):
        expected = smallest(scores_of(view, norm).reshape(-1, m), m - n).view(view.shape)
        mask = nm_mask(view, n, m, norm)
        assert mask.dtype == torch.bool
        assert torch.equal(mask.view(torch.uint8).cpu(), expected.view(torch.uint8))

        scores = scores_of(view.abs(), norm)
        dropped = smallest(scores.reshape(-1, m), m - n).view(view.shape).to(DEVICE)
        applied = torch.full(view.shape, math.nan, dtype=dtype, device=DEVICE)
        nm_apply(view, n, m, norm, applied)
        # Bit for bit: a kept -0.0 stays one.
        assert torch.equal(applied.view(torch.uint8), view.masked_fill(dropped, 0.0).contiguous().view(torch.uint8))


def test_nm_of_infinities_and_of_nothing() -> None:
    scores = with_ties(5, 1024, torch.float16)
    expected = smallest(scores_of(scores, None).reshape(-1, 4), 2).view(scores.shape)
    assert torch.equal(nm_mask(scores, 2, 4).cpu(), expected)
    for shape in ((0, 8), (8, 0)):
        assert nm_mask(torch.zeros(shape, device=DEVICE), 2, 4).shape == shape
        nm_apply(torch.zeros(shape, device=DEVICE), 2, 4, None, torch.zeros(shape, device=DEVICE))


def check_codes(values: Tensor, norm: Tensor | None = None) -> None:
    columns = values.shape[1]
    order = scores_of(values, norm).sort(dim=1, stable=True).indices
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(columns).expand_as(order))
    codes = quantile_codes(values, norm)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes.cpu(), (ranks * 256 // columns).to(torch.uint8))


@dtypes
@norms
@pytest.mark.parametrize("shape", [(5, 1001), (1, 2500), (3, 7), (1, 1), (9, 256)], ids=str)
def test_quantile_codes(shape: tuple[int, int], dtype: torch.dtype, with_norm: bool) -> None:
    check_codes(finite_with_ties(*shape, dtype), norm_of(shape[1], with_norm))


def test_quantile_codes_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantile_codes_module, "BAND_SCORES", 100)
    check_codes(with_ties(10, 40, torch.bfloat16)[::2, 3:33])
    monkeypatch.setattr(quantile_codes_module, "BAND_SCORES", 10)
    check_codes(with_ties(5, 40, torch.float32))
    assert quantile_codes(torch.zeros(0, 5, device=DEVICE)).shape == (0, 5)
    assert quantile_codes(torch.zeros(5, 0, device=DEVICE)).shape == (5, 0)


ANY = [torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.complex64]


@pytest.mark.parametrize("dtype", ANY, ids=str)
@pytest.mark.parametrize("level", [0, 1, 100, 256])
def test_masked_copy(level: int, dtype: torch.dtype) -> None:
    weight = torch.randint(0, 256, (9, 1001 * dtype.itemsize), dtype=torch.uint8, device=DEVICE).view(dtype)
    if dtype == torch.bool:
        weight = weight.view(torch.uint8) > 99
    codes = torch.randint(0, 256, weight.shape, dtype=torch.uint8, device=DEVICE)

    def raw(tensor: Tensor) -> Tensor:
        return tensor.contiguous().view(torch.uint8)

    expected = weight.masked_fill(codes.short() < level, 0)
    out = torch.empty(weight.shape, dtype=dtype, device=DEVICE)
    masked_copy(weight, codes, level, out)
    assert torch.equal(raw(out), raw(expected))

    # Rows with a stride, and a frame around them that stays as it was.
    wide = torch.full((11, 1011 * dtype.itemsize), 1, dtype=torch.uint8, device=DEVICE).view(dtype)
    frame = wide.clone()
    masked_copy(weight[:, 3:-2], codes[:, 5:], level, wide[1:-1, 5:-10])
    frame[1:-1, 5:-10] = weight[:, 3:-2].masked_fill(codes[:, 5:].short() < level, 0)
    assert torch.equal(raw(wide), raw(frame))

    masked_copy(weight, codes, level, weight)
    assert torch.equal(raw(weight), raw(expected))


def test_codes_hold_the_masks_of_every_sparsity() -> None:
    weight = rand(4, 300, dtype=torch.bfloat16)
    codes = quantile_codes(weight.abs())
    for level in (0, 1, 77, 128, 255, 256):
        out = torch.empty(weight.shape, dtype=weight.dtype, device=DEVICE)
        masked_copy(weight, codes, level, out)
        dropped = smallest(scores_of(weight.abs(), None), -(-level * 300 // 256)).to(DEVICE)
        assert torch.equal(out, weight.masked_fill(dropped, 0.0))


@pytest.mark.gpu
def test_two_runs_agree_bit_for_bit() -> None:
    weight = rand(2000, 3000, dtype=torch.bfloat16)

    def run() -> list[Tensor]:
        masks = [
            *select_mask_global([weight, weight.flip(0)], 4_000_001),
            select_mask(weight, 99),
            nm_mask(weight, 2, 4),
        ]
        return [*masks, kth_value(weight, 99), quantile_codes(weight), kth_value_global([weight, weight], 4_000_001)]

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))
