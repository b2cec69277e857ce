"""Pruning by score: the smallest weights by magnitude or Wanda's score, exactly as many as a plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.model import get_linear
from pruneengine.model.edit import zero_of_groups, zero_weights
from pruneengine.sparse.matrices import Matrix
from pruneengine.sparse.pattern import Pattern
from pruneengine.sparse.plan import SparsePlan
from pruneengine.sparse.pruners.input_sums import idle


def zero_smallest(
    model: nn.Module,
    plan: SparsePlan,
    matrices: Sequence[Matrix],
    compare: str,
    norms: Mapping[str, Tensor] | None = None,
) -> None:
    """Zero the weights of the smallest ``|W| * norm`` of these matrices, in place.

    Args:
        model: whose linears change.
        plan: number of weights to zero in each matrix, and the pattern.
        matrices: those to prune; under compare "layer" all matrices of a decoder layer but those that stay dense.
        compare: "row", "matrix" or "layer": the weights that compete for the zeros. Ignored under an N:M pattern.
        norms: float32 ``[C]`` per site, one factor per input channel: Wanda's score (Sun et al. 2024, eq. 1). None
            for magnitude.
    """
    pattern = Pattern.parse(plan.pattern)
    matrices = [matrix for matrix in matrices if plan.removed[matrix.name]]
    linears = [get_linear(model, matrix.name) for matrix in matrices]
    # A selection by |W| alone is one by |W| * 1: no copy of the weights without their signs is made.
    used = [
        torch.ones(matrix.columns, device=linear.weight.device) if norms is None else norms[matrix.site]
        for matrix, linear in zip(matrices, linears, strict=True)
    ]
    if compare != "layer":
        # Norms of an idle expert are zero, and so would be all its scores: its weights go by magnitude.
        used = [torch.ones_like(norm) if idle(m.site, norm) else norm for m, norm in zip(matrices, used, strict=True)]
    if pattern.m is not None:
        for matrix, linear, norm in zip(matrices, linears, used, strict=True):
            zero_of_groups(linear, plan.kept_of_group(matrix.name), pattern.m, norm)
    elif compare == "layer":
        count = sum(plan.removed[matrix.name] for matrix in matrices)
        masks = ops.select_mask_global([linear.weight.detach() for linear in linears], count, used) if matrices else []
        for linear, mask in zip(linears, masks, strict=True):
            zero_weights(linear, mask)
    else:
        choose = smallest_of_rows if compare == "row" else smallest_of_matrix
        for matrix, linear, norm in zip(matrices, linears, used, strict=True):
            zero_weights(linear, choose(linear.weight.detach(), plan.removed[matrix.name], norm))


def smallest_of_rows(weight: Tensor, count: int, norm: Tensor) -> Tensor:
    """Return True at the ``count // R`` smallest scores of every row: bool ``[R, C]``.

    In the first ``count % R`` rows it is one score more.
    """
    per_row, extra = divmod(count, len(weight))
    if not extra:
        return ops.select_mask(weight, per_row, norm)
    first, rest = (ops.select_mask(weight[:extra], per_row + 1, norm), ops.select_mask(weight[extra:], per_row, norm))
    return torch.cat([first, rest])


def smallest_of_matrix(weight: Tensor, count: int, norm: Tensor) -> Tensor:
    """Return True at the ``count`` smallest scores of the matrix: bool ``[R, C]``."""
    return ops.select_mask_global([weight], count, [norm])[0]
