"""Wanda and SparseGPT as the published scripts run them, on today's transformers.

One sample at a time goes through one decoder layer at a time, every layer twice. The first pass has a hook on each
linear that gathers its own statistics, although several linears read the same input; the second runs the pruned layer
for the input of the next. Wanda sorts every row in full and takes groups of M columns one after the other; SparseGPT
visits the columns in a Python loop. Nothing is printed, and hidden states never leave the model's device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RowNorms:
    """Wanda's statistic of one linear's input.

    Attributes:
        squares: of every input channel, summed over tokens, mean over samples: float32 ``[C]``.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.samples = 0
        self.squares = torch.zeros(linear.weight.shape[1], device=linear.weight.device)

    def add(self, x: Tensor) -> None:
        self.squares *= self.samples / (self.samples + len(x))
        self.samples += len(x)
        columns = x.flatten(0, 1).t().float()
        self.squares += columns.norm(p=2, dim=1).square() / self.samples

    def prune(self, sparsity: float, pattern: tuple[int, int] | None) -> None:
        weight = self.linear.weight.data
        scores = weight.abs() * self.squares.sqrt()
        removed = torch.zeros_like(scores, dtype=torch.bool)
        if pattern is None:
            _, order = scores.sort(dim=1, stable=True)
            removed.scatter_(1, order[:, : int(weight.shape[1] * sparsity)], True)
        else:
            for column in range(0, weight.shape[1], pattern[1]):
                removed.scatter_(1, column + _smallest(scores[:, column : column + pattern[1]], pattern), True)
        weight[removed] = 0


class Hessian:
    """SparseGPT's statistic of one linear's input: ``2 X^T X``, mean over samples, float32 ``[C, C]``."""

    damp, block = 0.01, 128

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.samples = 0
        columns = linear.weight.shape[1]
        self.matrix = torch.zeros(columns, columns, device=linear.weight.device)

    def add(self, x: Tensor) -> None:
        self.matrix *= self.samples / (self.samples + len(x))
        self.samples += len(x)
        columns = math.sqrt(2 / self.samples) * x.flatten(0, 1).t().float()
        self.matrix += columns @ columns.t()

    def prune(self, sparsity: float, pattern: tuple[int, int] | None) -> None:
        weight = self.linear.weight.data.float().clone()
        factor = self._factor(weight)
        for start in range(0, weight.shape[1], self.block):
            stop = min(start + self.block, weight.shape[1])
            errors = _prune_block(weight[:, start:stop], factor[start:stop, start:stop], sparsity, pattern)
            weight[:, stop:] -= errors @ factor[start:stop, stop:]
        self.linear.weight.data.copy_(weight)

    def _factor(self, weight: Tensor) -> Tensor:
        """The upper Cholesky factor of the damped inverse; weights on dead inputs are set to zero."""
        diagonal = self.matrix.diagonal()
        dead = diagonal == 0
        diagonal[dead] = 1
        weight[:, dead] = 0
        diagonal += self.damp * diagonal.mean()
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(self.matrix)), upper=True)


def _prune_block(block: Tensor, factor: Tensor, sparsity: float, pattern: tuple[int, int] | None) -> Tensor:
    """Prune ``block [R, c]`` in place, column by column; returns the columns' errors ``[R, c]``."""
    errors, pivots = torch.zeros_like(block), factor.diagonal()
    removed = torch.zeros_like(block, dtype=torch.bool)
    if pattern is None:
        scores = block.square() / pivots.square()
        removed = scores <= scores.flatten().sort().values[int(scores.numel() * sparsity)]
    for column in range(block.shape[1]):
        if pattern is not None and column % pattern[1] == 0:
            group = slice(column, column + pattern[1])
            removed.scatter_(1, column + _smallest(block[:, group].square() / pivots[group].square(), pattern), True)
        going = block[:, column].masked_fill(~removed[:, column], 0)
        errors[:, column] = going / pivots[column]
        block[:, column:] -= errors[:, column : column + 1] @ factor[column : column + 1, column:]
        block[:, column].masked_fill_(removed[:, column], 0)
    return errors


def _smallest(scores: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Columns to remove in every row of a group: int64 ``[R, M - N]`` for N of M kept."""
    return scores.topk(pattern[1] - pattern[0], dim=1, largest=False).indices


@torch.no_grad()
def naive_sparsify(
    model: nn.Module,
    tokens: Tensor,
    statistic: Callable[[nn.Linear], Any],
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Prune every linear of the decoder layers in place.

    Args:
        model: a causal language model of the Llama family.
        tokens: of the samples, int64 ``[N, T]``.
        statistic: :class:`RowNorms` for Wanda, :class:`Hessian` for SparseGPT.
        sparsity: part of every row (Wanda) or block of columns (SparseGPT) that is removed.
        pattern: (N, M) keeps N of M consecutive columns, whatever the sparsity.

    Returns:
        The statistics by path of the linear.
    """
    layers = model.model.layers
    hidden, arguments = _first_inputs(model, tokens)
    found: dict[str, Any] = {}
    for index, layer in enumerate(layers):
        linears = {path: module for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
        statistics = {path: statistic(linear) for path, linear in linears.items()}
        hooks = [
            linear.register_forward_hook(lambda _module, args, _out, path=path: statistics[path].add(args[0]))  # noqa: B023
            for path, linear in linears.items()
        ]
        _run(layer, hidden, arguments)
        for hook in hooks:
            hook.remove()
        for gathered in statistics.values():
            gathered.prune(sparsity, pattern)
        hidden = _run(layer, hidden, arguments)
        found |= {f"model.layers.{index}.{path}": gathered for path, gathered in statistics.items()}
    return found


def _run(layer: nn.Module, hidden: Tensor, arguments: dict[str, Any]) -> Tensor:
    outputs = torch.zeros_like(hidden)
    for number, sample in enumerate(hidden):
        output = layer(sample[None], **arguments)
        outputs[number] = output[0] if isinstance(output, tuple) else output
    return outputs


class _ReachedError(Exception):
    """The first layer has been reached."""


def _first_inputs(model: nn.Module, tokens: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What enters the first layer, ``[N, T, H]``, and what every layer is given besides."""
    seen, arguments = [], {}

    def catch(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(args[0])
        arguments.update(kwargs)
        raise _ReachedError

    hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for sample in tokens:
        try:
            model(input_ids=sample[None].to(model.device), use_cache=False)
        except _ReachedError:
            continue
    hook.remove()
    return torch.cat(seen), arguments
