"""What enters a linear, summed up over the calibration text: all that a pruner keeps of it."""

from __future__ import annotations

import torch
from torch import Tensor

from pruneengine import ops


class SquareSums:
    """Sums of squares of each sample and channel, for Wanda's norms."""

    def __init__(self) -> None:
        self._samples: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take in ``[b, T, C]`` of further samples."""
        self._samples.append(ops.activation_stats(x)[1])

    def norm(self, module: str) -> Tensor:
        """Root of the mean over samples: float32 ``[C]``, the same to the bit for any split into batches.

        Raises:
            ValueError: it is not finite; the message names the module.
        """
        return checked_norm(torch.cat(self._samples).mean(0).sqrt(), module)


class Hessian:
    """``2 X^T X`` over all tokens, by samples: that of a linear's squared error, for SparseGPT."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._samples = 0

    def add(self, x: Tensor) -> None:
        """Take in ``[b, T, C]`` of further samples, in float32."""
        rows = x.reshape(-1, x.shape[-1]).float()
        if self._sum is None:
            self._sum = rows.new_zeros(x.shape[-1], x.shape[-1])
        self._sum.addmm_(rows.T, rows)
        self._samples += len(x)

    def matrix(self, module: str) -> Tensor:
        """Float32 ``[C, C]``, the caller's to change; the sums are given away.

        Raises:
            ValueError: it is not finite; the message names the module.
        """
        found, self._sum = self._sum, None
        if not bool(found.isfinite().all()):
            raise ValueError(_not_finite(module))
        return found.mul_(2 / self._samples)


def checked_norm(norm: Tensor, module: str) -> Tensor:
    """Return norms ``[C]`` as they are; ValueError naming the module whose input they are of if not finite."""
    if not bool(norm.isfinite().all()):
        raise ValueError(_not_finite(module))
    return norm


def idle(site: str, squares: Tensor) -> bool:
    """Whether a site is that of an expert that no token was sent to; ``squares`` or norms of what entered: ``[C]``."""
    return ".experts." in site and not bool(squares.any())


def _not_finite(module: str) -> str:
    return (
        f"what enters {module} is not finite: activations hold NaN or infinity (load the model in bfloat16 or float32)"
    )
