"""Sums over the inputs of a linear: sums of squares for Wanda, the Hessian for SparseGPT.

These sums are all that a pruner keeps of the calibration text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.common.errors import InputError


class SquareSums:
    """Sums of squares per sample and channel, for Wanda's norms."""

    def __init__(self) -> None:
        self._samples: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Add the inputs ``[b, T, C]`` of further samples."""
        self._samples.append(ops.activation_stats(x)[1])

    def norm(self, module: str) -> Tensor:
        """Return the root of the mean over samples: float32 ``[C]``, the same to the bit for any split into batches.

        Raises:
            ValueError: a norm is not finite; the message names the module.
        """
        return checked_norm(torch.cat(self._samples).mean(0).sqrt(), module)


class Hessian:
    """``2 X^T X`` over all tokens, divided by the number of samples: the Hessian of a linear's squared error."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._samples = 0

    def add(self, x: Tensor) -> None:
        """Add the inputs ``[b, T, C]`` of further samples, in float32."""
        rows = x.reshape(-1, x.shape[-1]).float()
        if self._sum is None:
            self._sum = rows.new_zeros(x.shape[-1], x.shape[-1])
        self._sum.addmm_(rows.T, rows)
        self._samples += len(x)

    def matrix(self, module: str) -> Tensor:
        """Return the Hessian, float32 ``[C, C]``. The sum itself is handed over, so this works once.

        Raises:
            ValueError: an entry is not finite; the message names the module.
        """
        total, self._sum = self._sum, None
        assert total is not None, "no inputs, or the Hessian was handed over before"
        if not bool(total.isfinite().all()):
            raise InputError(_not_finite(module))
        return total.mul_(2 / self._samples)


def checked_norm(norm: Tensor, module: str) -> Tensor:
    """Return norms ``[C]``; raise ValueError, naming the module that reads them, if one is not finite."""
    if not bool(norm.isfinite().all()):
        raise InputError(_not_finite(module))
    return norm


def idle(site: str, squares: Tensor) -> bool:
    """Return True for a site of an expert that no token was sent to; ``squares`` or norms of its inputs: ``[C]``."""
    return ".experts." in site and not bool(squares.any())


def _not_finite(module: str) -> str:
    return (
        f"what enters {module} is not finite: activations hold NaN or infinity (load the model in bfloat16 or float32)"
    )
