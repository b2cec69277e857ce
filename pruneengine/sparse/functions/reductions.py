"""Reductions of the allocation functions: the scores of a block become one number.

Both readings have mean, unbiased variance and deviation, ``l1 = mean |x|`` (as the authors' code, not a sum) and the
Frobenius norm. Two reductions differ:

- geometric: safe, ``exp(mean ln |x|)`` over the scores that are not 0 (0 if all are); compat, the float32 product to
  the power 1/n, which is 0 or infinite for any block of real size.
- entropy: ``-sum p ln p`` of ``p = x / sum x`` over ``x >= 0``, 0 if no score is positive; compat, with p inside the
  logarithm clamped to at least float32's epsilon, as in torch's Categorical, which distorts the entropy of blocks with
  millions of scores.

Arguments: scores ``x``, float64 ``[B, K]``, and ``w``, the number of times that each occurs ``[B, K]``. Results:
``[B]``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pruneengine.sparse.functions.operations import LIMIT, Array, OfScores, weighted_mean, weighted_sum, weighted_var

_EPSILON = float(np.finfo(np.float32).eps)
_LEAST_LOG, _MOST_LOG = float(np.log(np.finfo(np.float32).smallest_subnormal)), float(np.log(np.finfo(np.float32).max))


def apply_reduce(name: str, x: Array, w: Array, compat: bool) -> Array:
    """Reduce the scores to one number per block: float64 ``[B]``; "no" is the mean."""
    with np.errstate(all="ignore"):
        value = (COMPAT_REDUCE if compat else SAFE_REDUCE)[name](x, w)
    return rounded(value, compat)


def rounded(value: Array, compat: bool) -> Array:
    """Round a reduction to float32, as published, or clamp it to the safe limits (0 where it is undefined)."""
    with np.errstate(all="ignore"):
        if compat:
            return value.astype(np.float32).astype(np.float64)
        return np.clip(np.where(np.isnan(value), 0.0, value), -LIMIT, LIMIT)


def _std(x: Array, w: Array) -> Array:
    return np.sqrt(weighted_var(x, w))


def _l1(x: Array, w: Array) -> Array:
    return weighted_mean(np.abs(x), w)


def _frobenius(x: Array, w: Array) -> Array:
    return np.sqrt(weighted_sum(np.square(x), w))


def _geometric(x: Array, w: Array) -> Array:
    w = np.where(x == 0, 0.0, w)
    return np.where(w.any(1), np.exp(weighted_mean(np.log(np.where(x == 0, 1.0, np.abs(x))), w)), 0.0)


def _geometric_published(x: Array, w: Array) -> Array:
    n = w.sum(1)
    log = weighted_sum(np.log(np.abs(x)), w)
    product = np.where(log < _LEAST_LOG, 0.0, np.where(log > _MOST_LOG, np.inf, np.exp(log)))
    negative = weighted_sum((x < 0).astype(np.float64), w) % 2 == 1
    return np.where(negative, -product, product) ** (1 / n)


def _entropy(x: Array, w: Array) -> Array:
    x = np.maximum(x, 0.0)
    p = x / weighted_sum(x, w)[:, None]
    return -weighted_sum(p * np.log(np.where(p > 0, p, 1.0)), w)


def _entropy_published(x: Array, w: Array) -> Array:
    w = np.where(x >= 0, w, 0.0)
    p = x / weighted_sum(x, w)[:, None]
    return np.where(w.any(1), -weighted_sum(p * np.log(np.clip(p, _EPSILON, 1 - _EPSILON)), w), np.nan)


_BOTH = {
    "no": weighted_mean,
    "mean": weighted_mean,
    "var": weighted_var,
    "std": _std,
    "l1": _l1,
    "frobenius": _frobenius,
}
SAFE_REDUCE: Mapping[str, OfScores] = _BOTH | {"geometric": _geometric, "entropy": _entropy}
COMPAT_REDUCE: Mapping[str, OfScores] = _BOTH | {"geometric": _geometric_published, "entropy": _entropy_published}
