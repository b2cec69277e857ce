"""Reference of sparse pruning in float64, written to be read: the engine's sparse methods must agree with it.

Every linear is pruned by a plain function of its weight and of all its inputs; the three modes differ only in which
linears are pruned together, and the inputs come from whole forward passes of the model as it is by then. (transformers
computes norms in float32 whatever the weights are; the engine's inputs have gone through the same ones.)

As in the released code of Wanda and SparseGPT: the scores, the groups that they are compared in, H as a mean over
samples, dead inputs (``H_jj = 1``, weights zero) before the damping by a part of the mean diagonal, the mask of a
block of columns chosen when the block is reached, in N:M that of a group of M columns. In ``two-pass`` the
order of things is theirs too.

Not as in the released code:

- counts are exact: theirs are ``int(C * sparsity)`` a row in Wanda and one weight more than asked for a block in
  SparseGPT (``score <= threshold``);
- N of N:M is the number that is kept; theirs is the number that is removed;
- a column's error goes to all later columns at once. Theirs waits for the end of a block, which is faster and the same;
- ``H^-1 = U^T U`` comes from an inverse, theirs from two Cholesky factors: the same but for rounding;
- everything is float64, theirs float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# The linears of a layer in the order in which their inputs arrive; those in one bracket read the same input.
SITES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


@dataclass
class Reference:
    """Result by the path of every linear; all tensors have the weight's shape ``[R, C]``.

    Attributes:
        removed: bool, the reference's own choice.
        margin: float64, how far an entry's score was from the threshold that it was compared with, as a part of it.
        weights: float64, after pruning.
    """

    removed: dict[str, Tensor] = field(default_factory=dict)
    margin: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Matrix:
    """Linear whose turn it is.

    Attributes:
        weight: float64 ``[R, C]``.
        inputs: all inputs of the linear, float64 ``[tokens, C]``.
        samples: number of samples that the tokens come from.
        count: weights to remove; not read where ``pattern`` is given.
        pattern: (N, M): N of M consecutive columns are kept; None for unstructured.
        follow: bool ``[R, C]``: the weights to remove whatever the own choice is.
    """

    weight: Tensor
    inputs: Tensor
    samples: int
    count: int
    pattern: tuple[int, int] | None
    follow: Tensor | None


Rule = Callable[[Matrix], tuple[Tensor, Tensor, Tensor]]


def prune(
    model: nn.Module,
    batches: Sequence[Tensor],
    rule: Rule,
    mode: str,
    *,
    counts: Mapping[str, int] | None = None,
    pattern: tuple[int, int] | None = None,
    follow: Mapping[str, Tensor] | None = None,
) -> Reference:
    """Prune a float64 copy of a model.

    Args:
        model: of the Llama family.
        batches: token ids, int64 ``[b, T]`` each.
        rule: of :func:`wanda`, :func:`magnitude` or :func:`sparsegpt`.
        mode: "one-shot", "two-pass" or "sequential".
        counts: weights to remove from every linear, by path; with ``pattern`` not needed.
        pattern: (N, M), N of M kept.
        follow: masks of removed weights by path. Pruning goes on with these in place of the own choices, so that two
            programs that differ in one tie can be compared to the end.
    """
    model = copy.deepcopy(model).double()
    found = Reference()
    samples = sum(len(tokens) for tokens in batches)
    for linears in stages(model, mode):
        for path, inputs in inputs_of(model, batches, linears).items():
            linear = model.get_submodule(path)
            count = 0 if counts is None else counts[path]
            chosen = None if follow is None else follow[path]
            matrix = Matrix(linear.weight.detach(), inputs, samples, count, pattern, chosen)
            found.removed[path], found.margin[path], found.weights[path] = rule(matrix)
            linear.weight.data.copy_(found.weights[path])
    return found


def stages(model: nn.Module, mode: str) -> Iterator[list[str]]:
    """Yield the paths of linears that are pruned together: all, those of a layer, or those that read one input."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    layers = [
        [[p for name in site for p in paths if f".layers.{i}." in p and p.endswith(name)] for site in SITES]
        for i in range(model.config.num_hidden_layers)
    ]
    if mode == "sequential":
        yield from (site for layer in layers for site in layer)
    elif mode == "two-pass":
        yield from ([path for site in layer for path in site] for layer in layers)
    elif mode == "one-shot":
        yield [path for layer in layers for site in layer for path in site]
    else:
        raise ValueError(f"mode {mode!r}: expected 'sequential', 'two-pass' or 'one-shot'")


@torch.no_grad()
def inputs_of(model: nn.Module, batches: Sequence[Tensor], linears: Sequence[str]) -> dict[str, Tensor]:
    """Collect all inputs of each linear in a forward pass of every batch: ``[tokens, C]``."""
    seen: dict[str, list[Tensor]] = {path: [] for path in linears}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _module, args, path=path: seen[path].append(args[0].flatten(0, 1))
        )
        for path in linears
    ]
    for tokens in batches:
        model(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(pieces) for path, pieces in seen.items()}


def smallest(scores: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mark the ``counts[g]`` smallest in row g of ``scores [G, K]`` (bool ``[G, K]``), and return all margins."""
    count = torch.tensor(counts)[:, None]
    ordered, order = scores.sort(dim=1, stable=True)
    removed = order.argsort(dim=1) < count
    # Halfway between the last that goes and the first that stays.
    around = torch.cat([count - 1, count], dim=1).clamp(0, scores.shape[1] - 1)
    threshold = ordered.gather(1, around).mean(dim=1, keepdim=True)
    margin = ((scores - threshold).abs() / threshold).nan_to_num(nan=0.0)
    choice = (count > 0) & (count < scores.shape[1])
    return removed, margin.where(choice, torch.inf)


def grouped(scores: Tensor, pattern: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Apply :func:`smallest` to every group of M consecutive columns of ``scores [R, C]``, of which N stay."""
    kept, of = pattern
    groups = scores.reshape(-1, of)
    removed, margin = smallest(groups, [of - kept] * len(groups))
    return removed.view_as(scores), margin.view_as(scores)


def row_counts(count: int, rows: int) -> list[int]:
    """Split a count evenly over the rows; the first rows lose one more where a rest remains."""
    return [count // rows + (row < count % rows) for row in range(rows)]


def wanda(compare: str = "row") -> Rule:
    """Score by ``|W_ij| * ||X_j||_2`` (Sun et al. 2024, eq. 1), compared within a "row" or the whole "matrix"."""
    return _by_score(lambda matrix: matrix.weight.abs() * matrix.inputs.norm(dim=0), compare)


def magnitude(compare: str = "matrix") -> Rule:
    """Score by ``|W_ij|``, compared within a "row" or the whole "matrix"."""
    return _by_score(lambda matrix: matrix.weight.abs(), compare)


def _by_score(score: Callable[[Matrix], Tensor], compare: str) -> Rule:
    def rule(matrix: Matrix) -> tuple[Tensor, Tensor, Tensor]:
        scores = score(matrix)
        if matrix.pattern is not None:
            removed, margin = grouped(scores, matrix.pattern)
        elif compare == "row":
            removed, margin = smallest(scores, row_counts(matrix.count, len(scores)))
        else:
            removed, margin = (x.view_as(scores) for x in smallest(scores.reshape(1, -1), [matrix.count]))
        return removed, margin, matrix.weight.masked_fill(removed if matrix.follow is None else matrix.follow, 0)

    return rule


def sparsegpt(damp: float = 0.01, block: int = 128) -> Rule:
    """Prune by SparseGPT (Frantar and Alistarh 2023, algorithm 1)."""

    def rule(matrix: Matrix) -> tuple[Tensor, Tensor, Tensor]:
        weight, columns = matrix.weight.clone(), matrix.weight.shape[1]
        hessian = 2 / matrix.samples * matrix.inputs.T @ matrix.inputs
        dead = hessian.diagonal() == 0
        hessian[dead, dead] = 1
        weight[:, dead] = 0
        hessian += damp * hessian.diagonal().mean() * torch.eye(columns, dtype=hessian.dtype)
        factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)

        removed = torch.zeros_like(weight, dtype=torch.bool)
        margin = torch.zeros_like(weight)
        width = block if matrix.pattern is None else matrix.pattern[1]
        for j in range(columns):
            if j % width == 0:
                reached = slice(j, min(j + width, columns))
                scores = (weight[:, reached] / factor.diagonal()[reached]).square()
                if matrix.pattern is None:
                    count = block_count(matrix.count, reached.start, reached.stop, columns)
                    chosen = smallest(scores.reshape(1, -1), [count])
                    removed[:, reached], margin[:, reached] = (x.view_as(scores) for x in chosen)
                else:
                    removed[:, reached], margin[:, reached] = grouped(scores, matrix.pattern)
            going = (removed if matrix.follow is None else matrix.follow)[:, j]
            error = torch.where(going, weight[:, j], 0) / factor[j, j]
            weight[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
            weight[going, j] = 0
        return removed, margin, weight

    return rule


def block_count(count: int, start: int, stop: int, columns: int) -> int:
    """Return a block's part of a matrix's count, by its columns: the parts of all blocks add up to the count."""
    return count * stop // columns - count * start // columns
