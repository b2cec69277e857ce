"""Allocations that are written down: the plan of an earlier prune, or sparsities by decoder layer or by linear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pruneengine.sparse.allocations.parse import WrittenSparsities
from pruneengine.sparse.matrices import Matrix, of_layers
from pruneengine.sparse.plan import SparsePlan

# Sparsities written with three digits still have the mean that is meant.
TOLERANCE = 5e-4


def read_sparsities(given: WrittenSparsities, matrices: Sequence[Matrix], target: float) -> dict[str, float]:
    """The sparsity that is written down of every matrix.

    Args:
        given: a plan (:class:`pruneengine.sparse.plan.SparsePlan`) of the same model; a list with a number for each
            decoder layer that has matrices; or an object whose names are linears and layers' indices, where a linear
            goes before its layer.
        matrices: what is pruned.
        target: what the mean over weights must be.

    Returns:
        ``{name: sparsity}``; their mean over weights is nearly, within half a thousandth, the target.

    Raises:
        ValueError: no such content, a plan of another model or target, a list of another length, a name that the model
            does not have or a matrix without a number, a number outside [0, 1), or another mean.
    """
    try:
        if given.is_plan:
            return _of_plan(SparsePlan.from_dict(given.content), matrices, target)
        found = _by_name(given.content, matrices)
        for name, value in found.items():
            _require_sparsity(name, value)
        _require_mean(found, matrices, target)
    except ValueError as error:
        raise ValueError(f"{given.path or 'allocation'}: {error}") from None
    return found


def _of_plan(plan: SparsePlan, matrices: Sequence[Matrix], target: float) -> dict[str, float]:
    plan.check(matrices)
    if abs(plan.asked - target) > 1e-9:
        raise ValueError(f"the plan's sparsity is {plan.asked:g}, expected {target:g}")
    return {matrix.name: plan.sparsity(matrix.name) for matrix in matrices}


def _by_name(content: list[Any] | dict[str, Any], matrices: Sequence[Matrix]) -> dict[str, Any]:
    layers = of_layers(matrices)
    if isinstance(content, list):
        if len(content) != len(layers):
            raise ValueError(f"{len(content)} sparsities, expected {len(layers)}, one for each decoder layer")
        content = dict(zip(map(str, layers), content, strict=True))
    names = {matrix.name for matrix in matrices}
    if unknown := [key for key in content if key not in names and key not in map(str, layers)]:
        raise ValueError(f"{unknown[0]!r} is neither a linear, such as {min(names)}, nor one of layers {_span(layers)}")
    found = {matrix.name: content.get(matrix.name, content.get(str(matrix.layer))) for matrix in matrices}
    if missing := [name for name, value in found.items() if value is None]:
        raise ValueError(f"no sparsity for {len(missing)} linears, such as {missing[0]}")
    return found


def _span(layers: Mapping[int, Any]) -> str:
    return f"{min(layers)} to {max(layers)}"


def _require_sparsity(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"the sparsity of {name} is {value!r}, expected a number in [0, 1)")


def _require_mean(found: Mapping[str, float], matrices: Sequence[Matrix], target: float) -> None:
    total = sum(matrix.numel for matrix in matrices)
    mean = math.fsum(found[matrix.name] * matrix.numel for matrix in matrices) / total
    if abs(mean - target) > TOLERANCE:
        raise ValueError(f"the sparsities' mean over weights is {mean:.6g}, expected {target:g}")
