"""Written allocations: the plan of an earlier prune, or sparsities by decoder layer or by linear."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.sparse.allocations.parse import WrittenSparsities
from pruneengine.sparse.matrices import Matrix, of_layers
from pruneengine.sparse.plan import SparsePlan

# Sparsities written with three digits may miss the mean that was meant by this much.
MEAN_TOLERANCE = 5e-4


def read_sparsities(written: WrittenSparsities, matrices: Sequence[Matrix], target: float) -> dict[str, float]:
    """Return the written sparsity of every matrix.

    Args:
        written: a plan (:class:`pruneengine.sparse.plan.SparsePlan`) of the same model; a list with a number for each
            decoder layer that has matrices; or an object whose names are linears and indices of layers, where the
            number of a linear overrides that of its layer.
        matrices: to prune.
        target: expected mean over weights.

    Returns:
        ``{name: sparsity}``; the mean over weights is the target to half a thousandth (:data:`MEAN_TOLERANCE`).

    Raises:
        ValueError: other content, a plan of another model or target, a list of another length, a name that the model
            does not have, a matrix without a number, a number outside [0, 1), or another mean.
    """
    try:
        if written.is_plan:
            return _of_plan(SparsePlan.from_dict(written.content), matrices, target)
        sparsities = _by_name(written.content, matrices)
        for name, value in sparsities.items():
            _require_sparsity(name, value)
        _require_mean(sparsities, matrices, target)
    except ValueError as error:
        raise InputError(f"{written.path or 'allocation'}: {error}") from None
    return sparsities


def _of_plan(plan: SparsePlan, matrices: Sequence[Matrix], target: float) -> dict[str, float]:
    plan.check(matrices)
    if abs(plan.asked - target) > 1e-9:
        raise InputError(f"the plan's sparsity is {plan.asked:g}, expected {target:g}")
    return {matrix.name: plan.sparsity(matrix.name) for matrix in matrices}


def _by_name(content: list[Any] | dict[str, Any], matrices: Sequence[Matrix]) -> dict[str, Any]:
    layers = of_layers(matrices)
    if isinstance(content, list):
        if len(content) != len(layers):
            raise InputError(f"{len(content)} sparsities, expected {len(layers)}, one for each decoder layer")
        content = dict(zip(map(str, layers), content, strict=True))
    names = {matrix.name for matrix in matrices}
    if unknown := [key for key in content if key not in names and key not in map(str, layers)]:
        raise InputError(f"{unknown[0]!r} is neither a linear, such as {min(names)}, nor one of layers {_span(layers)}")
    sparsities = {matrix.name: content.get(matrix.name, content.get(str(matrix.layer))) for matrix in matrices}
    if missing := [name for name, value in sparsities.items() if value is None]:
        raise InputError(f"no sparsity for {len(missing)} linears, such as {missing[0]}")
    return sparsities


def _span(layers: Mapping[int, Any]) -> str:
    return f"{min(layers)} to {max(layers)}"


def _require_sparsity(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"the sparsity of {name} is {value!r}, expected a number in [0, 1)")


def _require_mean(sparsities: Mapping[str, float], matrices: Sequence[Matrix], target: float) -> None:
    total = sum(matrix.numel for matrix in matrices)
    mean = math.fsum(sparsities[matrix.name] * matrix.numel for matrix in matrices) / total
    if abs(mean - target) > MEAN_TOLERANCE:
        raise InputError(f"the sparsities' mean over weights is {mean:.6g}, expected {target:g}")
