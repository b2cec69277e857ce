"""Cases of statistics of activations, and of activations times their gradients."""

from __future__ import annotations

from torch import Tensor

from pruneengine import ops
from pruneengine.bench.case import Baseline, Inputs, Work, case, size
from pruneengine.bench.gate import sums
from pruneengine.bench.shapes import Matrix


def _activations(inputs: Inputs, shape: Matrix) -> Tensor:
    samples = next(n for n in (4, 3, 1) if shape.rows % n == 0)
    return inputs.normal(samples, shape.rows // samples, shape.columns)


@case("activation_stats", "sum, squares, peak", "tokens", "read")
def activation_stats(inputs: Inputs, shape: Matrix) -> Work:
    """Make the case with a baseline ``squares`` that forms the squares alone: less work than ours."""
    x = _activations(inputs, shape)

    def formula(up, x):
        x = up(x)
        return x.sum(1), x.square().sum(1), x.abs().amax(1)

    squares = Baseline(lambda x: x.float().square().sum(1), lambda got, right: sums(got, right[1]))
    return Work((x,), ops.activation_stats, formula, sums, size(x), baselines={"squares": squares})


@case("gate_scores", "sum of x dx", "tokens", "read")
def gate_scores(inputs: Inputs, shape: Matrix) -> Work:
    x, dx = _activations(inputs, shape), _activations(inputs, shape)
    return Work((x, dx), ops.gate_scores, lambda up, x, dx: (up(x) * up(dx)).sum(1), sums, size(x, dx))
