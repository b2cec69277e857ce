"""Erdos-Renyi allocation: a matrix keeps weights in proportion to its rows plus its columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pruneengine.common.errors import InputError
from pruneengine.sparse.matrices import Matrix


def erdos_renyi(matrices: Sequence[Matrix], sparsity: float, dense: Collection[str] = ()) -> dict[str, float]:
    """Return Erdos-Renyi sparsities (Mocanu et al. 2018; Evci et al. 2020) that meet the target.

    ``density = epsilon * (rows + columns) / (rows * columns)``. Epsilon is solved so that the number of kept weights is
    that of the target. A matrix whose density would reach 1 is dense, and epsilon is solved again for the rest.

    Args:
        matrices: to prune.
        sparsity: over all matrices.
        dense: names of matrices that are dense in any case (ER-plus).

    Returns:
        ``{name: sparsity}``.

    Raises:
        ValueError: the other matrices cannot make up for the dense ones.
    """
    free = [matrix for matrix in matrices if matrix.name not in dense]
    removed, possible = sparsity * sum(matrix.numel for matrix in matrices), sum(matrix.numel for matrix in free)
    if removed > possible:
        raise InputError(
            f"sparsity {sparsity:g} is out of reach with {len(dense)} matrices dense, such as {min(dense)}: expected "
            f"at most {possible / sum(matrix.numel for matrix in matrices):.4f}"
        )
    kept = possible - removed
    while free:
        epsilon = kept / sum(matrix.rows + matrix.columns for matrix in free)
        full = [matrix for matrix in free if epsilon * (matrix.rows + matrix.columns) >= matrix.numel]
        if not full:
            break
        kept -= sum(matrix.numel for matrix in full)
        free = [matrix for matrix in free if matrix not in full]
    density = {matrix.name: epsilon * (matrix.rows + matrix.columns) / matrix.numel for matrix in free}
    return {matrix.name: 1 - density.get(matrix.name, 1.0) for matrix in matrices}
