"""Allocation: the sparsity of every matrix, from the config's target and the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.budgets import meet_mean
from pruneengine.common.errors import InputError
from pruneengine.sparse.allocations.parse import WrittenSparsities, parse_allocation
from pruneengine.sparse.allocations.requests import (
    Request,
    request_by_function,
    request_by_outliers,
    request_by_shape,
    request_global,
    request_uniform,
    request_written,
    target_of,
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
        sparsities: by the linear's module path, in [0, 0.99] unless uniform. The mean over weights is the target to
            1e-12; only nearly under an N:M pattern whose decoder layers differ in size.
        words: description for reports.
        values: number by which each decoder layer was judged, where there is one: OWL's percentage of outliers, or the
            function's value.
        warnings: for the user.
    """

    sparsities: dict[str, float]
    words: str
    values: dict[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def needs_statistics(config: SparseConfig) -> bool:
    """Return True if the allocation reads Wanda's scores, and so statistics of the dense model with "squares".

    Raises:
        ValueError: the allocation is neither a name, nor a function, nor a file.
    """
    parsed = parse_allocation(config.allocation)
    return parsed == "owl" or isinstance(parsed, Function) or (parsed == "global" and config.method != "magnitude")


def allocate_sparsities(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics | None = None
) -> Allocation:
    """Decide the sparsity of each matrix.

    Allocations:

    - ``uniform``: the target everywhere.
    - ``global``: one threshold over all scores of the method.
    - ``er``, ``er-plus``: Erdos-Renyi densities; with ``er-plus`` the last decoder layer is dense.
    - ``owl`` (Yin et al. 2024): decoder layers with more outliers stay denser.
    - ``dsa``: the function that the authors of DSA released.
    - An allocation function, as text or file.
    - Sparsities, written out or in a file (:func:`pruneengine.sparse.allocations.written.read_sparsities`).

    OWL and functions read Wanda's scores under every method, as published.

    The part of a sparsity that a bound cuts off is given to the matrices within the bounds, by one common shift. The
    bound on the spread holds for every matrix except those that stay dense: those with a written sparsity of zero, and
    those of ``er-plus``. Under N:M it holds before the rounding to whole numbers.

    Args:
        model: the dense model.
        matrices: to prune.
        config: the allocation, the target and the pattern. Under N:M each decoder layer loses a whole number of weights
            per group, from 0 to M - 1; matrices that stay dense are excepted.
        statistics: of the dense model, with "squares"; needed where :func:`needs_statistics` says so.

    Raises:
        ValueError: an unknown allocation, missing statistics, a file that does not fit, or a target that the bounds do
            not allow.
    """
    if needs_statistics(config) and statistics is None:
        raise InputError(f"allocation {config.allocation!r} reads Wanda's scores: it needs statistics with 'squares'")
    request = _requested(model, matrices, config, statistics)
    if config.allocation == "uniform":
        return Allocation(request.shares, request.words)
    return _granted(request, matrices, config)


def _requested(
    model: nn.Module, matrices: Sequence[Matrix], config: SparseConfig, statistics: Statistics | None
) -> Request:
    parsed = parse_allocation(config.allocation)
    if isinstance(parsed, WrittenSparsities):
        return request_written(matrices, config, parsed)
    if isinstance(parsed, Function):
        assert statistics is not None  # needs_statistics says so
        return request_by_function(model, matrices, config, statistics, parsed)
    if parsed == "owl":
        assert statistics is not None  # needs_statistics says so
        return request_by_outliers(model, matrices, config, statistics)
    if parsed == "global":
        return request_global(model, matrices, config, statistics)
    if parsed == "uniform":
        return request_uniform(matrices, config)
    return request_by_shape(matrices, config, plus=parsed == "er-plus")


def _granted(request: Request, matrices: Sequence[Matrix], config: SparseConfig) -> Allocation:
    """Return the requested sparsities, shifted and cut until the target is met within the bounds."""
    target, m = target_of(config), Pattern.parse(config.pattern).m
    least: float = 0
    most = MOST if m is None else (m - 1) / m
    if request.bound is not None:
        least, most = max(least, target - request.bound), min(most, target + request.bound)
    names = [matrix.name for matrix in matrices]
    bounds = [(0, 0) if name in request.dense else (least, most) for name in names]
    try:
        met = meet_mean([request.shares[name] for name in names], [matrix.numel for matrix in matrices], target, bounds)
    except ValueError as error:
        dense = f", with {len(request.dense)} linears dense, such as {min(request.dense)}" if request.dense else ""
        raise InputError(f"allocation {request.words}: {error}{dense}") from None
    sparsities, warnings = dict(zip(names, met, strict=True)), request.warnings
    if m is not None:
        sparsities |= _in_groups([matrix for matrix in matrices if matrix.name not in request.dense], sparsities, m)
        if target and len(set(sparsities.values())) == 1 and not warnings:
            warnings = (
                f"allocation {request.words}: in whole weights per group of {m} all layers come out the same; a spread "
                f"of {1 / (2 * m):g} or more (λ, --spread) could tell them apart",
            )
    return Allocation(sparsities, request.words, request.values, warnings)


def _in_groups(matrices: Sequence[Matrix], sparsities: Mapping[str, float], m: int) -> dict[str, float]:
    """Return the sparsities in whole numbers of weights per group, with the same mean."""
    weights = sum(matrix.numel for matrix in matrices)
    removed = math.fsum(sparsities[matrix.name] * matrix.numel for matrix in matrices)
    return round_to_groups(matrices, sparsities, removed / weights, m) if matrices else {}
