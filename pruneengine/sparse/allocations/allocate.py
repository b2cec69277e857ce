"""How a sparsity is spread over the matrices: what each takes of an allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.budgets import meet_mean
from pruneengine.sparse.allocations.parse import WrittenSparsities, parse_allocation
from pruneengine.sparse.allocations.requests import (
    Request,
    wish_as_given,
    wish_by_function,
    wish_by_outliers,
    wish_by_shape,
    wish_global,
    wish_uniform,
)
from pruneengine.sparse.allocations.whole_groups import round_to_groups
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.functions.allocation import MOST
from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.matrices import Matrix
from pruneengine.sparse.pattern import Pattern


@dataclass(frozen=True)
class Allocation:
    """The sparsity of every matrix.

    Attributes:
        sparsities: by the linear's module path, in [0, 0.99] unless uniform. Their mean over weights is the target to
            1e-12; under an N:M pattern whose decoder layers differ in size, nearly.
        words: how it was decided.
        values: what a decoder layer was judged by, where there is such a number: OWL's percentage of outliers, or the
            function's value.
        warnings: what the user should know.
    """

    sparsities: dict[str, float]
    words: str
    values: dict[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def needs_statistics(config: SparseConfig) -> bool:
    """Whether the allocation reads Wanda's scores, and so statistics of the dense model with "squares".

    Raises:
        ValueError: an allocation that is neither a name, nor a function, nor a file.
    """
    meaning = parse_allocation(config.allocation)
    return meaning == "owl" or isinstance(meaning, Function) or (meaning == "global" and config.method != "magnitude")


def allocate_sparsities(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics | None = None
) -> Allocation:
    """Decide how much of each matrix goes.

    ``uniform``; ``global``, one threshold over all scores of the method; ``er`` and ``er-plus``, Erdos-Renyi
    densities, the latter with the last decoder layer dense; ``owl`` (Yin et al. 2024), decoder layers with more
    outliers kept denser; ``dsa``, the function that the authors of DSA released; an allocation function as text or
    file; or sparsities, written out or in a file (:func:`pruneengine.sparse.allocations.written.read_sparsities`). OWL
    and functions read Wanda's scores under every method, as published. What a bound cuts off is given to the matrices
    within it by one common shift; the bound on the spread holds for every matrix but those that stay dense (whose
    sparsity was written down as zero, and those of ``er-plus``), and under N:M before whole numbers are taken.

    Args:
        model: the dense model.
        matrices: what is pruned.
        config: the allocation, the target and the pattern; under N:M each decoder layer gets its whole number of
            weights per group, between none and M - 1, but for matrices that stay dense.
        statistics: of the dense model, with "squares", where :func:`needs_statistics` says so.

    Raises:
        ValueError: an unknown allocation, statistics that are missing, a file that does not fit, or a target that the
            bounds do not allow.
    """
    if needs_statistics(config) and statistics is None:
        raise ValueError(f"allocation {config.allocation!r} reads Wanda's scores: it needs statistics with 'squares'")
    meaning = parse_allocation(config.allocation)
    if meaning == "uniform":
        wish = wish_uniform(matrices, config)
        return Allocation(wish.shares, wish.words)
    if isinstance(meaning, Function):
        wish = wish_by_function(model, matrices, config, statistics, meaning)
    elif isinstance(meaning, WrittenSparsities):
        wish = wish_as_given(matrices, config, meaning)
    elif meaning == "owl":
        wish = wish_by_outliers(model, matrices, config, statistics)
    elif meaning == "global":
        wish = wish_global(model, matrices, config, statistics)
    else:
        wish = wish_by_shape(matrices, config, plus=meaning == "er-plus")
    return _granted(wish, matrices, config)


def _granted(wish: Request, matrices: Sequence[Matrix], config: SparseConfig) -> Allocation:
    """The wish, moved and cut until the target is met within the bounds."""
    target, m = config.sparsity, Pattern.parse(config.pattern).m
    most = MOST if m is None else (m - 1) / m
    least, most = (0, most) if wish.bound is None else (max(0, target - wish.bound), min(most, target + wish.bound))
    names = [matrix.name for matrix in matrices]
    bounds = [(0, 0) if name in wish.dense else (least, most) for name in names]
    try:
        met = meet_mean([wish.shares[name] for name in names], [matrix.numel for matrix in matrices], target, bounds)
    except ValueError as error:
        held = f", with {len(wish.dense)} linears dense, such as {min(wish.dense)}" if wish.dense else ""
        raise ValueError(f"allocation {wish.words}: {error}{held}") from None
    sparsities, warnings = dict(zip(names, met, strict=True)), wish.warnings
    if m is not None:
        sparsities |= _in_groups([matrix for matrix in matrices if matrix.name not in wish.dense], sparsities, m)
        if target and len(set(sparsities.values())) == 1 and not warnings:
            warnings = (
                f"allocation {wish.words}: in whole weights per group of {m} all layers come out the same; a spread of "
                f"{1 / (2 * m):g} or more (λ, --spread) could tell them apart",
            )
    return Allocation(sparsities, wish.words, wish.values, warnings)


def _in_groups(matrices: Sequence[Matrix], sparsities: Mapping[str, float], m: int) -> dict[str, float]:
    """Whole numbers of weights per group for these matrices, whose mean stays what it is."""
    weights = sum(matrix.numel for matrix in matrices)
    removed = math.fsum(sparsities[matrix.name] * matrix.numel for matrix in matrices)
    return round_to_groups(matrices, sparsities, removed / weights, m) if matrices else {}
