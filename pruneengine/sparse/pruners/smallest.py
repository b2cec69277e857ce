"""Which weights go by magnitude or by Wanda's score, exactly as many as a plan says, and their zeros."""

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
        plan: how many weights of each matrix go, and the pattern.
        matrices: those to prune; under compare "layer" all of a decoder layer that are not to stay dense.
        compare: whose weights compete for the zeros: "row", "matrix" or "layer"; not read under an N:M pattern.
        norms: of each input channel, float32 ``[C]`` by site: Wanda's score (Sun et al. 2024, eq. 1); None for
            magnitude.
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
        # All scores would be zero, and no weight better than another.
        used = [torch.ones_like(norm) if idle(m.site, norm) else norm for m, norm in zip(matrices, used, strict=True)]
    if pattern.grouped:
        for matrix, linear, norm in zip(matrices, linears, used, strict=True):
            kept = plan.kept_of_group(matrix.name)
            zero_of_groups(linear, kept, pattern.m, norm)
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
    """True at ``count // R`` of the smallest scores of every row, one more of the first ``count % R``: ``[R, C]``."""
    each, extra = divmod(count, len(weight))
    if not extra:
        return ops.select_mask(weight, each, norm)
    return torch.cat([ops.select_mask(weight[:extra], each + 1, norm), ops.select_mask(weight[extra:], each, norm)])


def smallest_of_matrix(weight: Tensor, count: int, norm: Tensor) -> Tensor:
    """True at the ``count`` smallest scores of the matrix: bool ``[R, C]``."""
    return ops.select_mask_global([weight], count, [norm])[0]
