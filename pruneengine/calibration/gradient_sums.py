"""Whole-set quantities of one linear: absolute sums over weights of mean gradients of a set of samples.

    abs_mean = sum |W * m|        mix = sum |W * (m - W * s / 2)|        m = mean_n G_n,  s = mean_n G_n^2

with ``G_n = delta_n^T x_n`` the gradient of sample n, and sums over a row (axis 0) or a column (axis 1) of the weight.
An absolute value of a mean is no sum over samples, so every set of samples needs its own m and s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneengine import ops

WHOLE_SET = frozenset({"abs_mean", "mix"})

# A tile of the weight, large enough for the matrix product and small enough for caches.
_ROWS, _COLUMNS = 96, 768
# Samples whose gradients of one tile exist at once, and the most that they and the sums of all sets may take.
_SAMPLES, _BYTES = 32, 256 * 2**20


class OneSet:
    """Sums over all samples together: two sums of the weight's size that grow as gradients arrive."""

    def __init__(self, weight: Tensor, quantities: frozenset[str], num_samples: int, scale: float) -> None:
        self.weight, self.quantities, self.num_samples, self.scale = weight, quantities, num_samples, scale
        self.total = torch.zeros_like(weight, dtype=torch.float32)
        self.squares = torch.zeros_like(weight, dtype=torch.float32) if "mix" in quantities else None

    def add(self, x: Tensor, delta: Tensor) -> None:
        """Take in a batch: the linear's input ``[b, T, C]`` and the scaled gradient at its output ``[b, T, R]``."""
        x, delta = x.float(), delta.float() / self.scale
        if self.squares is None:
            self.total.addmm_(delta.flatten(0, 1).T, x.flatten(0, 1))
            return
        for x_n, delta_n in zip(x, delta, strict=True):
            gradient = delta_n.T @ x_n
            self.total += gradient
            self.squares.addcmul_(gradient, gradient)

    def finish(self, axis: int) -> dict[str, Tensor]:
        """Return ``{quantity: float32 [1, R or C]}``, and give up the sums."""
        mean, values = self.total.div_(self.num_samples), {}
        if "abs_mean" in self.quantities:
            values["abs_mean"] = _absolute(self.weight, mean)[axis][None]
        if self.squares is not None:
            mean.addcmul_(self.weight.float(), self.squares, value=-0.5 / self.num_samples)
            values["mix"] = _absolute(self.weight, mean)[axis][None]
        # Freed before the next layer allocates its own.
        del self.total, self.squares
        return values


class ManySets:
    """Sums over several sets, one tile of the weight at a time: ``[S, N]`` memberships times ``[N, tile]`` gradients.

    Keeps inputs of the linear and gradients at its output for all samples, one layer's at a time, in place of S sums of
    the weight's size. Each gradient is formed once, however many sets there are.
    """

    def __init__(
        self, weight: Tensor, quantities: frozenset[str], num_samples: int, scale: float, sets: Sequence[Sequence[int]]
    ) -> None:
        self.weight, self.quantities, self.scale = weight, quantities, scale
        self.membership = torch.zeros(len(sets), num_samples, device=weight.device)
        for row, samples in zip(self.membership, sets, strict=True):
            row[list(samples)] = 1 / len(samples)
        self.pieces: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, delta: Tensor) -> None:
        """Take in a batch; batches come in the order of the samples."""
        self.pieces.append((x, delta))

    def finish(self, axis: int) -> dict[str, Tensor]:
        """Return ``{quantity: float32 [S, R or C]}``, and give up the batches that were kept."""
        x, delta = (_joined(pieces) for pieces in zip(*self.pieces, strict=True))
        self.pieces.clear()
        sets, weight = len(self.membership), self.weight
        sums = {q: torch.zeros(sets, weight.shape[axis], device=weight.device) for q in self.quantities & WHOLE_SET}
        height = max(1, min(_ROWS, _BYTES // (4 * _COLUMNS * (_SAMPLES + 2 * sets))))
        for top in range(0, weight.shape[0], height):
            rows = slice(top, top + height)
            for first in range(0, weight.shape[1], _COLUMNS):
                columns = slice(first, first + _COLUMNS)
                tile = weight[rows, columns]
                mean, squares = self._moments(x[:, :, columns], delta[:, :, rows])
                forms = {"abs_mean": mean}
                if squares is not None:
                    forms["mix"] = squares.mul_(tile.float() * -0.5).add_(mean)
                for quantity, totals in sums.items():
                    for total, gradient in zip(totals, forms[quantity], strict=True):
                        total[(rows, columns)[axis]] += _absolute(tile, gradient)[axis]
        return sums

    def _moments(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean gradient and mean squared gradient of a tile in each set: ``[S, r, c]``."""
        shape = (len(self.membership), delta.shape[2], x.shape[2])
        mean = x.new_zeros(shape, dtype=torch.float32).flatten(1)
        squares = torch.zeros_like(mean) if "mix" in self.quantities else None
        chunks = zip(*(t.split(_SAMPLES, dim) for t, dim in ((x, 0), (delta, 0), (self.membership, 1))), strict=True)
        for x_n, delta_n, share in chunks:
            gradients = torch.bmm(delta_n.float().transpose(1, 2) / self.scale, x_n.float()).flatten(1)
            mean.addmm_(share, gradients)
            if squares is not None:
                squares.addmm_(share, gradients.square_())
        return mean.view(shape), None if squares is None else squares.view(shape)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Return batches ``[b, T, C]`` one behind the other, with zeros where an expert was sent fewer tokens."""
    longest = max(piece.shape[1] for piece in pieces)
    return torch.cat(
        [nn.functional.pad(p, (0, 0, 0, longest - p.shape[1])) if p.shape[1] < longest else p for p in pieces]
    )


def _absolute(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums of ``|W * G|`` over rows ``[R]`` and columns ``[C]``."""
    rows, columns = ops.taylor_scores(weight, gradient, ("absolute",))
    return rows[0], columns[0]
