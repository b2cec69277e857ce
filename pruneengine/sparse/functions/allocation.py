"""Sparsities from the values of an allocation function (Li, Dong et al., NeurIPS 2024, their code).

``sparsity_l = s + sign * 2λ (m_l - mean m)`` with ``m = (v - min v) / (max v - min v)``: the sparsest block lies 2λ
above the least sparse, and the mean is s. Any affine map of v with a positive slope gives the same allocation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pruneengine.common.budgets import meet_mean
from pruneengine.common.errors import InputError
from pruneengine.common.validation import require_within
from pruneengine.sparse.functions.operations import Array

MOST = 0.99


def position(values: ArrayLike) -> Array | None:
    """Return ``m`` in [0, 1], the position of each value between the least and the greatest; None if all are equal.

    Raises:
        ValueError: the values are not a vector of finite numbers.
    """
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not v.size or not np.isfinite(v).all():
        raise InputError(f"expected one finite number a block, got {v.tolist()}")
    # Halved first, so that the distance of the greatest finite numbers is finite.
    v = v / 2
    span = v.max() - v.min()
    return None if span == 0 else (v - v.min()) / span


def allocation_of(
    values: ArrayLike,
    sparsity: float,
    spread: float,
    sign: int = 1,
    *,
    weights: Sequence[float] | ArrayLike | None = None,
) -> Array:
    """Return the sparsity of every block from its value.

    The authors' code replaces sparsities of 0 or less by 0.01, and has no upper bound. Where that changes a sparsity
    their mean is missed, so we do not follow it.

    Args:
        values: one finite number per block ``[B]``.
        sparsity: mean s over the blocks, in [0, 0.99].
        spread: λ in (0, 0.5].
        sign: +1, higher values become sparser; -1, the reverse.
        weights: number of weights in each block, for the mean; by default the same in each.

    Returns:
        float64 ``[B]``, read-only. Every sparsity lies in [0, 0.99], and the weighted mean is s up to float64 rounding.
        The part that a bound cuts off is given to the blocks within the bounds, by one common shift. All are s if all
        values are equal.

    Raises:
        ValueError: a number out of its range, or values or weights of another shape.
    """
    require_within("sparsity", sparsity, 0, MOST)
    if not 0 < spread <= 0.5:
        raise InputError(f"the spread λ must lie in (0, 0.5], got {spread}")
    if sign not in (1, -1):
        raise InputError(f"sign must be +1 or -1, got {sign!r}")
    m = position(values)
    if m is None:
        return _fixed(np.full(np.size(values), float(sparsity)))
    share = _share(weights, m.size)
    unbounded = sparsity + sign * 2 * spread * (m - m @ share)
    if unbounded.min() >= 0 and unbounded.max() <= MOST:
        return _fixed(unbounded)
    return _fixed(np.array(meet_mean(unbounded.tolist(), share.tolist(), sparsity, [(0.0, MOST)] * m.size)))


def canonical_levels(values: ArrayLike, sign: int = 1) -> tuple[int, ...]:
    """Return a key shared by candidates whose values differ in scale and offset alone: m in whole thousandths.

    For sign -1 it is the m of the negated values. If all values are equal the key is empty. Candidates with the same
    key lie within 1e-3 of one another in every m (L-infinity); two that lie nearer may still fall on two sides of a
    border. λ is no part of the key.
    """
    m = _oriented(values, sign)
    # Halves, which ratios of small whole numbers hit, go up whatever their last bits say.
    return () if m is None else tuple(np.floor(m * 1000 + (0.5 + 1e-6)).astype(int).tolist())


def _oriented(values: ArrayLike, sign: int) -> Array | None:
    m = position(values)
    return m if m is None or sign > 0 else 1 - m


def _fixed(sparsity: Array) -> Array:
    sparsity.setflags(write=False)
    return sparsity


def _share(weights: ArrayLike | None, blocks: int) -> Array:
    if weights is None:
        return np.full(blocks, 1 / blocks)
    share = np.asarray(weights, dtype=np.float64)
    if share.shape != (blocks,) or not (np.isfinite(share).all() and (share > 0).all()):
        raise InputError(f"expected {blocks} positive numbers of weights, got {share.tolist()}")
    return share / share.sum()
