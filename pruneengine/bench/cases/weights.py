"""Cases of sums and moments of the scores of weights."""

from __future__ import annotations

import functools

import torch

from pruneengine import ops
from pruneengine.bench.case import Baseline, Inputs, Work, case, single, size
from pruneengine.bench.gate import exactly, sums
from pruneengine.bench.shapes import Layer, Matrix
from pruneengine.ops import reference

POWERS = (0.5, 1.0, 1.5, 2.0)


def _rows_and_columns(scores):
    return scores.sum(1), scores.sum(0)


@case("weight_scores", "|W|", "weight", "read")
def magnitude(inputs: Inputs, shape: Matrix) -> Work:
    w = inputs.normal(shape.rows, shape.columns)
    return Work((w,), ops.weight_scores, lambda up, w: _rows_and_columns(up(w).abs()), sums, size(w))


@case("weight_scores", "|W| norm", "weight", "read")
def wanda(inputs: Inputs, shape: Matrix) -> Work:
    w, norm = inputs.normal(shape.rows, shape.columns), inputs.norm(shape.columns)

    def formula(up, w, norm):
        return _rows_and_columns(up(w).abs() * up(norm))

    return Work((w, norm), ops.weight_scores, formula, sums, size(w))


@case("weight_scores", "4 exponents at once", "weight", "read")
def exponents(inputs: Inputs, shape: Matrix) -> Work:
    w = inputs.normal(shape.rows, shape.columns)

    def formula(up, w):
        magnitudes = up(w).abs()
        return zip(*(_rows_and_columns(magnitudes.pow(power)) for power in POWERS), strict=True)

    def stacked(up, w):
        rows, columns = formula(up, w)
        return torch.stack(rows), torch.stack(columns)

    return Work((w,), lambda w: ops.weight_scores(w, power=POWERS), stacked, sums, size(w))


@case(
    "weight_scores", "|W| of a whole model, replayed graph", "layer", "read", gpu_only=True, graph=True, compiled=False
)
def model(inputs: Inputs, shape: Layer) -> Work:
    weights = [inputs.normal(*size) for _ in range(shape.count) for size in shape.weights]
    return Work(
        (weights,),
        lambda weights: [ops.weight_scores(w) for w in weights],
        lambda up, weights: [_rows_and_columns(up(w).abs()) for w in weights],
        sums,
        size(*weights),
    )


def _absolute(up, w, g):
    rows, columns = _rows_and_columns((up(w) * up(g)).abs())
    return rows[None], columns[None]


def _three_forms(up, w, g):
    product = up(w) * up(g)
    forms = [_rows_and_columns(form) for form in (product, product.abs(), product.square())]
    return tuple(torch.stack(part) for part in zip(*forms, strict=True))


def _preallocated(w, forms):
    """Return a baseline in eager torch without fresh temporaries: only arithmetic and traffic remain."""
    product, other = (torch.empty(w.shape, dtype=torch.float32, device=w.device) for _ in range(2))
    rows, columns = (torch.empty(len(forms), size, dtype=torch.float32, device=w.device) for size in w.shape)

    def run(w, g):
        product.copy_(w)
        other.copy_(g)
        torch.mul(product, other, out=product)
        for i, in_place in enumerate(forms):
            in_place(product)
            torch.sum(product, 1, out=rows[i])
            torch.sum(product, 0, out=columns[i])
        return rows, columns

    return Baseline(run)


@case("taylor_scores", "|w g|", "weight", "read")
def taylor_absolute(inputs: Inputs, shape: Matrix) -> Work:
    w, g = (inputs.normal(shape.rows, shape.columns) for _ in range(2))
    ours = functools.partial(ops.taylor_scores, forms=("absolute",))
    baselines = {"eager-out": _preallocated(w, [torch.Tensor.abs_])}
    return Work((w, g), ours, _absolute, sums, size(w, g), baselines=baselines)


@case("taylor_scores", "all forms", "weight", "read")
def taylor_forms(inputs: Inputs, shape: Matrix) -> Work:
    w, g = (inputs.normal(shape.rows, shape.columns) for _ in range(2))
    in_turn = [lambda product: product, torch.Tensor.abs_, torch.Tensor.square_]
    baselines = {"eager-out": _preallocated(w, in_turn)}
    return Work((w, g), ops.taylor_scores, _three_forms, sums, size(w, g), baselines=baselines)


@case("taylor_scores_outer", "from delta and X", "weight", "matmul")
def taylor_outer(inputs: Inputs, shape: Matrix) -> Work:
    """Make the case. On a GPU the formula multiplies in the inputs' dtype, as autograd does, and rounds to it."""
    samples, tokens = (4, 2048) if inputs.on_gpu else (2, 128)
    w = inputs.normal(shape.rows, shape.columns)
    delta, x = (inputs.normal(samples, tokens, size) for size in (shape.rows, shape.columns))

    def formula(up, w, delta, x):
        if not (inputs.on_gpu and up is single):
            delta, x = up(delta), up(x)
        return _three_forms(up, w, delta.flatten(0, 1).T @ x.flatten(0, 1))

    return Work(
        (w, delta, x),
        ops.taylor_scores_outer,
        formula,
        sums,
        size(w, delta, x),
        flops=2 * samples * tokens * w.numel(),
        loosely=functools.partial(sums, within=2e-2) if inputs.on_gpu else None,
    )


@case("block_moments", "moments, 3 thresholds, histogram", "weight", "read")
def block_moments(inputs: Inputs, shape: Matrix) -> Work:
    w = inputs.normal(shape.rows, shape.columns)
    thresholds = w.float().abs().mean() * torch.tensor([1.0, 3.0, 5.0], device=w.device)

    def agree(got, right):
        return sums([*got[0]], [*right[0]], within=1e-5) or exactly(got[1:], right[1:])

    def ours(w, thresholds):
        return ops.block_moments(w, thresholds=thresholds)

    def formula(up, w, thresholds):
        return reference.block_moments(w, None, 1.0, 1.0, thresholds)

    return Work((w, thresholds), ours, formula, agree, size(w))
