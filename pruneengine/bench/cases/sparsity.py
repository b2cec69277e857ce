"""Cases of 2:4 masks, quantile codes and masks from codes."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.bench.case import Agree, Baseline, Inputs, Work, case, size
from pruneengine.bench.cases.selection import metric
from pruneengine.bench.gate import exactly, sums
from pruneengine.bench.shapes import Layer, Matrix
from pruneengine.ops import reference

LOOP_COLUMNS = 2048  # greatest width on a CPU, where the loop over groups of columns takes seconds beyond
DIVISIBLE = Matrix(37, 1004)


def _mask_by_topk(scores: Tensor) -> Tensor:
    smallest = scores.view(-1, 4).topk(2, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).view(-1, 4).scatter_(1, smallest, True).view(scores.shape)


def _column_loop(scores: Tensor) -> Tensor:
    """Select as Wanda's code does: a topk and a scatter for every four columns."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for begin in range(0, scores.shape[1], 4):
        smallest = scores[:, begin : begin + 4].topk(2, dim=1, largest=False).indices
        mask.scatter_(1, begin + smallest, True)
    return mask


def _same_scores(scores: Tensor) -> Agree:
    """Return a comparison that allows any choice between equal scores, which topk leaves open.

    Every group must lose the same number of weights, and the same scores in all.
    """

    def agree(got: Tensor, right: Tensor) -> str | None:
        counts = [mask.view(-1, 4).sum(1) for mask in (got, right)]
        taken = [(scores.double() * mask).view(-1, 4).sum(1) for mask in (got, right)]
        return exactly(*counts) or sums(taken[0], taken[1], within=1e-12)

    return agree


@case("nm_mask", "2:4 of |W| norm", "weight", "copy", gate=DIVISIBLE)
def nm_mask(inputs: Inputs, shape: Matrix) -> Work:
    w, norm = inputs.normal(shape.rows, shape.columns), inputs.norm(shape.columns)
    agree = _same_scores(metric(w, norm))
    loop = {"wanda-loop": Baseline(lambda w, norm: _column_loop(metric(w, norm)), agree)}
    return Work(
        (w, norm),
        lambda w, norm: ops.nm_mask(w, 2, 4, norm),
        lambda up, w, norm: _mask_by_topk(metric(w, norm)),
        exactly,
        size(w) + w.numel(),
        expected=lambda w, norm: reference.nm_mask(w, 2, 4, norm),
        loosely=agree,
        baselines=loop if inputs.on_gpu or shape.columns <= LOOP_COLUMNS else {},
    )


@case("nm_mask", "2:4 of one whole layer", "layer", "copy", gpu_only=True, graph=True, compiled=False)
def nm_mask_layer(inputs: Inputs, shape: Layer) -> Work:
    weights = [inputs.normal(*size) for size in shape.weights]
    norms = [inputs.norm(w.shape[1]) for w in weights]
    agrees = [_same_scores(metric(w, norm)) for w, norm in zip(weights, norms, strict=True)]

    def each(run):
        return lambda weights, norms: [run(w, norm) for w, norm in zip(weights, norms, strict=True)]

    def agree(got, right):
        parts = zip(agrees, got, right, strict=True)
        return next((reason for same, *pair in parts if (reason := same(*pair))), None)

    by_topk = each(lambda w, norm: _mask_by_topk(metric(w, norm)))
    return Work(
        (weights, norms),
        each(lambda w, norm: ops.nm_mask(w, 2, 4, norm)),
        lambda up, weights, norms: by_topk(weights, norms),
        exactly,
        size(*weights) + sum(w.numel() for w in weights),
        expected=each(lambda w, norm: reference.nm_mask(w, 2, 4, norm)),
        loosely=agree,
        baselines={"wanda-loop": Baseline(each(lambda w, norm: _column_loop(metric(w, norm))), agree)},
    )


@case("nm_apply", "2:4 of |W| norm", "weight", "copy", gate=DIVISIBLE)
def nm_apply(inputs: Inputs, shape: Matrix) -> Work:
    w, norm = inputs.normal(shape.rows, shape.columns), inputs.norm(shape.columns)
    same = _same_scores(metric(w, norm))

    def agree(got, right):
        return same(got == 0, right == 0) or exactly(got, torch.where(got == 0, 0, w))

    def expected(w, norm):
        out = torch.empty_like(w)
        reference.nm_apply(w, 2, 4, norm, out)
        return out

    return Work(
        (w, norm),
        lambda w, norm: ops.nm_apply(w, 2, 4, norm),
        lambda up, w, norm: w.masked_fill(_mask_by_topk(metric(w, norm)), 0),
        exactly,
        2 * size(w),
        expected=expected,
        loosely=agree,
    )


@case("quantile_codes", "|W| norm", "weight", "copy")
def quantile_codes(inputs: Inputs, shape: Matrix) -> Work:
    w, norm = inputs.normal(shape.rows, shape.columns), inputs.norm(shape.columns)

    def formula(up, w, norm):
        order = metric(w, norm).argsort(dim=1, stable=True)
        codes = (torch.arange(w.shape[1], device=w.device) * 256 // w.shape[1]).to(torch.uint8)
        return torch.empty_like(order, dtype=torch.uint8).scatter_(1, order, codes.expand_as(order))

    return Work((w, norm), ops.quantile_codes, formula, exactly, size(w) + w.numel())


@case("masked_copy", "50% from codes", "weight", "copy")
def masked_copy(inputs: Inputs, shape: Matrix) -> Work:
    w = inputs.normal(shape.rows, shape.columns)
    codes = inputs.norm(w.numel()).mul(200).to(torch.uint8).view(w.shape)
    ours, eager = torch.empty_like(w), torch.empty_like(w)

    def formula(up, w, codes):
        return eager.copy_(w).masked_fill_(codes < 128, 0)

    return Work(
        (w, codes), lambda w, codes: ops.masked_copy(w, codes, 128, ours), formula, exactly, 2 * size(w) + size(codes)
    )
