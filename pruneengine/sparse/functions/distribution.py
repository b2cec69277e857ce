"""Score distributions of the blocks: exact moments and a histogram, from which candidates are evaluated."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from torch import Tensor

from pruneengine.common.errors import InputError
from pruneengine.ops.reference import HISTOGRAM_BINS, MOMENTS
from pruneengine.sparse.functions.allocation import position
from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.functions.operations import Array, apply_post, apply_pre, as_published
from pruneengine.sparse.functions.reductions import apply_reduce, rounded
from pruneengine.sparse.functions.sample import sample_of

# Reductions of logarithms, which have a sign, that follow from their sum and sum of squares.
_SIGNED = ("mean", "var", "std", "frobenius")
_NEVER_NEGATIVE = ("abs", "square", "exp", "sigmoid", "minmax", "sqrt", "softmax")
# A smaller relative difference between blocks comes from the rounding of float32 and of the sums.
ROUNDING_TOLERANCE = 1e-6
# Greatest shift of a block on the way from the least to the greatest when its number is off by rounding.
POSITION_TOLERANCE = 1e-2


class ScoreDistribution:
    """The element-wise scores of B blocks, for any number of candidate functions.

    Some reductions follow exactly from the moments of :func:`pruneengine.ops.block_moments`: mean, variance, deviation,
    l1, norm, geometric mean and entropy of the scores and of their squares; mean, variance, deviation and norm of their
    logarithm. Everything else comes from the histogram (:mod:`.sample`).

    From 40,000 scores per block on, results from the histogram are good to 1e-4 after one smooth operation, and to 1e-6
    in the median over all chains. Two kinds are worse: exponentials of scores beyond 10, which the few greatest scores
    dominate (percent); and logarithms, geometric means and entropies of values that come near 0 in the midst of the
    scores (``normalize, log``: the order of magnitude at times).

    Every chain of operations before a reduction, and every reduction, is computed once.

    Args:
        moments: float64 ``[B, 12]``.
        histogram: int64 ``[B, 2048]``.

    Raises:
        ValueError: other shapes, a block without scores, or scores that are negative or not finite.
    """

    def __init__(self, moments: Tensor, histogram: Tensor) -> None:
        if moments.ndim != 2 or moments.shape[1] != len(MOMENTS) or not len(moments):
            raise InputError(f"moments must be [blocks, {len(MOMENTS)}], got {list(moments.shape)}")
        if histogram.shape != (len(moments), HISTOGRAM_BINS):
            raise InputError(f"histogram must be [{len(moments)}, {HISTOGRAM_BINS}], got {list(histogram.shape)}")
        self.moments = moments.double().cpu()
        self.histogram = histogram.cpu()
        for block, row in enumerate(self.moments.tolist()):
            named = dict(zip(MOMENTS, row, strict=True))
            if not named["count"]:
                raise InputError(f"block {block} has no scores")
            if not (named["min"] >= 0 and np.isfinite(row).all()):
                raise InputError(
                    f"the scores of block {block} must be finite and not negative; they lie in "
                    f"[{named['min']}, {named['max']}] and their sum is {named['sum']}"
                )
        self._chains: dict[tuple[tuple[str, ...], bool], Array] = {}
        self._reduced: dict[tuple[str | bool | tuple[str, ...], ...], Array] = {}

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def counts(self) -> Array:
        """Number of scores in each block: float64 ``[B]``."""
        return self._moment("count")

    def values(self, function: Function) -> Array:
        """Return the function's number for every block: float64 ``[B]``.

        In the safe reading all numbers are finite, always. In compat NaN has become 0 and an infinity -1.
        """
        if function.reduce == "no":
            return self._mean_of_each(function)
        return _transformed(self.reduced(function.pre, function.reduce, function.compat), function)

    def is_valid(self, function: Function, tolerance: float = ROUNDING_TOLERANCE) -> bool:
        """Return True if the function tells blocks apart by more than rounding.

        Its numbers must be finite and differ by more than ``tolerance`` of the greatest magnitude, both before and
        after transform and post. And an error of ``tolerance`` in the reduced numbers may move no block by more than a
        hundredth of the way from the least to the greatest. So ``sin`` of 10^8 is invalid: it would be another
        allocation on another machine.
        """
        values = self.values(function)
        if function.reduce == "no":
            return tells_apart(values, tolerance)
        reduced = self.reduced(function.pre, function.reduce, function.compat)
        if not (tells_apart(reduced, tolerance) and tells_apart(values, tolerance)):
            return False
        off = _transformed(reduced * (1 + tolerance * (-1.0) ** np.arange(len(reduced))), function)
        if not tells_apart(off, tolerance):
            return False
        before, after = position(values), position(off)
        assert before is not None  # the numbers differ
        assert after is not None
        return bool(np.abs(after - before).max() < POSITION_TOLERANCE)

    def reduced(self, pre: tuple[str, ...], reduce: str, compat: bool = False) -> Array:
        """Return the blocks' numbers before transform and post: float64 ``[B]``, cached for later candidates."""
        pre = self._simplified(pre)
        key = (pre, reduce, compat)
        if key not in self._reduced:
            exact = self._exact(pre, reduce, compat)
            self._reduced[key] = (
                apply_reduce(reduce, self._chain(pre, compat), self.sample[1], compat)
                if exact is None
                else rounded(exact, compat)
            )
        return self._reduced[key]

    @cached_property
    def sample(self) -> tuple[Array, Array]:
        """``(values, weights)``, float64 ``[B, K]``: the weighted sample that stands for the scores."""
        return sample_of(self.moments.numpy(), self.histogram.numpy())

    def _mean_of_each(self, function: Function) -> Array:
        pre, compat = self._simplified(function.pre), function.compat
        key = (pre, "no", function.transform, function.post, compat)
        if key not in self._reduced:
            x = self._chain(pre, compat)
            for name in (function.transform, function.post):
                x = apply_post(name, x, compat)
            mean = apply_reduce("no", x, self.sample[1], compat)
            self._reduced[key] = as_published(mean) if compat else mean
        return self._reduced[key]

    def _chain(self, pre: tuple[str, ...], compat: bool) -> Array:
        if not pre:
            return self.sample[0]
        if (pre, compat) not in self._chains:
            before = self._chain(pre[:-1], compat)
            self._chains[pre, compat] = apply_pre(pre[-1], before, self.sample[1], compat)
        return self._chains[pre, compat]

    @staticmethod
    def _simplified(pre: tuple[str, ...]) -> tuple[str, ...]:
        """Drop ``abs`` where its argument is never negative: on scores, and behind some operations."""
        kept: list[str] = []
        for name in pre:
            if name != "abs" or (kept and kept[-1] not in _NEVER_NEGATIVE):
                kept.append(name)
        return tuple(kept)

    def _moment(self, name: str) -> Array:
        return self.moments[:, MOMENTS.index(name)].numpy()

    def _exact(self, pre: tuple[str, ...], reduce: str, compat: bool) -> Array | None:
        """Return the reduction where the moments alone give it; None elsewhere."""
        if pre in ((), ("square",)):
            names = ("sum", "sum2", "slog") if not pre else ("sum2", "sum4", "s2log")
            total, squares, logs = (self._moment(name) for name in names)
            bare = compat and reduce in ("geometric", "entropy")
            return None if bare else self._of_sums(reduce, total, squares, 1 + len(pre), logs)
        if pre == ("abslog",) or (pre == ("log",) and not compat):
            return self._of_sums(reduce, self._moment("log"), self._moment("log2")) if reduce in _SIGNED else None
        return None

    def _of_sums(self, reduce: str, total: Array, squares: Array, power: int = 1, logs: Array | None = None) -> Array:
        """Return a reduction of ``x^power``; ``logs`` is the sum of ``x^power ln x``, for the entropy alone."""
        n = self.counts
        with np.errstate(all="ignore"):
            if reduce in ("mean", "l1", "no"):
                return total / n
            if reduce == "frobenius":
                return np.sqrt(squares)
            if reduce == "geometric":
                positive = self._moment("positive")
                return np.where(positive > 0, np.exp(power * self._moment("log") / positive), 0.0)
            if reduce == "entropy":
                assert logs is not None  # every caller that asks for an entropy passes them
                return np.where(total > 0, np.log(total) - power * logs / total, 0.0)
            var = np.maximum(squares - np.square(total) / n, 0.0) / (n - 1)
        return var if reduce == "var" else np.sqrt(var)


def tells_apart(values: Array, tolerance: float = ROUNDING_TOLERANCE) -> bool:
    """Return True if the values are finite and differ by more than ``tolerance`` of the greatest magnitude."""
    if not np.isfinite(values).all():
        return False
    high, low = values.max(), values.min()
    return bool(high - low > tolerance * max(high, -low))


def _transformed(value: Array, function: Function) -> Array:
    for name in (function.transform, function.post):
        if name != "no":
            value = apply_post(name, value, function.compat)
    return as_published(value) if function.compat else value
