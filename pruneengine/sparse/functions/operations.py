"""Operations of the allocation functions, each in two readings.

**Safe**: finite for every finite input, with the natural value wherever there is one. Exceptions:

======================  ==================================================================================
log (pre)               0 where x <= 0 (as the authors' code, which sets such scores to 1)
abslog (pre)            ln abs(x), signed as in the authors' code; 0 where x = 0
exp                     the argument is clamped to at most 100
normalize, minmax       0 everywhere in a block whose scores are all equal
sqrt                    of abs(x)
log (after)             ln abs(v), with abs(v) clamped to at least 1e-100
asin, acos              the argument is clamped to [-1, 1]
all                     the result is clamped to [-1e100, 1e100]
======================  ==================================================================================

**Compat**: as the authors' code computes it, in float32 with its overflows, infinities and NaN. Only a block's final
number is cleaned of them (:func:`as_published`). Log is ``ln(x + 1e-6)`` there. It writes into its argument, which
changes nothing else, because that argument is a copy of the scores.

Functions of scores take ``x``, float64 ``[B, K]``, the scores of B blocks, and ``w``, the number of times that each
occurs. Functions of the blocks' numbers take ``v``, float64 of any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
OfScores = Callable[[Array, Array], Array]
OfValues = Callable[[Array], Array]

LIMIT = 1e100
MOST_EXPONENT = 100.0


def weighted_sum(x: Array, w: Array) -> Array:
    """Return the sum over the scores of each block: ``[B]``. Scores with weight 0 are left out, even infinities."""
    return np.einsum("bk,bk->b", np.where(w > 0, x, 0.0), w)


def weighted_mean(x: Array, w: Array) -> Array:
    """Return the mean of each block: ``[B]``; exactly 0 where it differs from 0 by rounding alone."""
    mean, magnitude = weighted_sum(x, w), weighted_sum(np.abs(x), w)
    return np.where(np.abs(mean) < 1e-12 * magnitude, 0.0, mean) / w.sum(1)


def weighted_var(x: Array, w: Array) -> Array:
    """Return the unbiased variance of each block: ``[B]``; NaN for a single score."""
    return weighted_sum(np.square(x - weighted_mean(x, w)[:, None]), w) / (w.sum(1) - 1)


def _exp(v: Array) -> Array:
    return np.exp(np.minimum(v, MOST_EXPONENT))


def _unit(v: Array) -> Array:
    return np.minimum(np.maximum(v, -1.0), 1.0)


def _sigmoid(v: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * v)


def _log_positive(x: Array, w: Array) -> Array:
    return np.log(np.where(x > 0, x, 1.0))


def _abslog(x: Array, w: Array) -> Array:
    return np.log(np.where(x == 0, 1.0, np.abs(x)))


def _normalize(x: Array, w: Array) -> Array:
    deviation = np.sqrt(weighted_var(x, w))[:, None]
    return np.where(deviation > 0, x - weighted_mean(x, w)[:, None], 0.0) / np.where(deviation > 0, deviation, 1.0)


def _minmax(x: Array, w: Array) -> Array:
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    return (x - low) / np.where(high > low, high - low, 1.0)


def _softmax(x: Array, w: Array) -> Array:
    risen = np.exp(x - x.max(1, keepdims=True))
    return risen / weighted_sum(risen, w)[:, None]


def _normalize_published(x: Array, w: Array) -> Array:
    normal = (x - weighted_mean(x, w)[:, None]) / np.sqrt(weighted_var(x, w))[:, None]
    return np.where(np.isnan(normal), 0.0, normal)


def _minmax_published(x: Array, w: Array) -> Array:
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    return (x - low) / (high - low + 1e-9)


def _of_each(function: OfValues) -> OfScores:
    return lambda x, w: function(x)


_EVERYWHERE: dict[str, OfValues] = {
    "no": lambda v: v, "abs": np.abs, "square": np.square, "sigmoid": _sigmoid, "tanh": np.tanh, "sin": np.sin,
    "cos": np.cos, "tan": np.tan, "atan": np.arctan, "softplus": lambda v: np.logaddexp(0.0, v),
}  # fmt: skip
_ON_SCORES = {name: _of_each(_EVERYWHERE[name]) for name in ("no", "abs", "square", "sigmoid", "tanh")}
_ON_VALUES = {name: function for name, function in _EVERYWHERE.items() if name != "square"}

SAFE_PRE: Mapping[str, OfScores] = _ON_SCORES | {
    "log": _log_positive, "abslog": _abslog, "exp": _of_each(_exp), "normalize": _normalize, "minmax": _minmax,
    "sqrt": _of_each(lambda v: np.sqrt(np.abs(v))), "softmax": _softmax,
}  # fmt: skip
SAFE_POST: Mapping[str, OfValues] = _EVERYWHERE | {
    "exp": _exp, "log": lambda v: np.log(np.maximum(np.abs(v), 1 / LIMIT)), "sqrt": lambda v: np.sqrt(np.abs(v)),
    "asin": lambda v: np.arcsin(_unit(v)), "acos": lambda v: np.arccos(_unit(v)),
}  # fmt: skip
COMPAT_PRE: Mapping[str, OfScores] = _ON_SCORES | {
    "log": lambda x, w: np.log(np.where(x <= 0, 1.0, x) + 1e-6), "abslog": _abslog, "exp": _of_each(np.exp),
    "normalize": _normalize_published, "minmax": _minmax_published,
}  # fmt: skip
COMPAT_POST: Mapping[str, OfValues] = _ON_VALUES | {
    "exp": np.exp, "log": np.log, "asin": np.arcsin, "acos": np.arccos,
}  # fmt: skip


def apply_pre(name: str, x: Array, w: Array, compat: bool) -> Array:
    """Apply one operation to the scores of all blocks: ``[B, K]``."""
    return _evaluated((COMPAT_PRE if compat else SAFE_PRE)[name], compat, x, w)


def apply_post(name: str, v: Array, compat: bool) -> Array:
    """Apply one transform or post operation, element by element."""
    return _evaluated((COMPAT_POST if compat else SAFE_POST)[name], compat, v)


def _evaluated(function: Callable[..., Array], compat: bool, *arguments: Array) -> Array:
    with np.errstate(all="ignore"):
        result = function(*arguments)
        return result.astype(np.float32).astype(np.float64) if compat else np.minimum(np.maximum(result, -LIMIT), LIMIT)


def as_published(v: Array) -> Array:
    """Apply the authors' last rule: NaN becomes 0, an infinity of either sign -1."""
    return np.where(np.isnan(v), 0.0, np.where(np.isinf(v), -1.0, v))
