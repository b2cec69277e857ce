"""Ridge regression, from sums alone, of a linear's missing output on the inputs it keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Moments:
    """Sums over tokens for the regression ``missing ~ delta @ x``; their size grows with channels, not tokens.

    Attributes:
        gram: sum of ``x x^T``, float64 ``[K, K]``.
        cross: sum of ``missing x^T``, float64 ``[H, K]``.
        missing: sum of the missing output, float64 ``[H]``.
        energy: sum of squares of the missing output.
        output: sum of squares of the whole output of the dense linear; errors are relative to it.
        tokens: number of tokens.
    """

    gram: Tensor
    cross: Tensor
    missing: Tensor
    energy: float = 0.0
    output: float = 0.0
    tokens: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int, device: torch.device) -> Moments:
        """Return sums over no token, for the given numbers of kept inputs and of outputs."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zeros(inputs, inputs), zeros(outputs, inputs), zeros(outputs))

    def add(self, x: Tensor, missing: Tensor, output: Tensor) -> None:
        """Add a batch: ``x`` ``[..., K]``, ``missing`` and ``output`` ``[..., H]``; float32 products, float64 sums."""
        x, missing, output = (t.flatten(0, -2).float() for t in (x, missing, output))
        self.gram += x.T @ x
        self.cross += missing.T @ x
        self.missing += missing.sum(0, dtype=torch.float64)
        self.energy += float(missing.double().square().sum())
        self.output += float(output.double().square().sum())
        self.tokens += len(x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def finite(self) -> bool:
        """True if no sum is NaN or infinite."""
        return bool(self.gram.isfinite().all() and self.cross.isfinite().all()) and abs(self.energy) < float("inf")

    def error(self, delta: Tensor | None = None, bias: Tensor | None = None) -> float:
        """Return the sum over tokens of ``|missing - delta x - bias|^2``, from the sums alone.

        Args:
            delta: ``[H, K]``; None for zero.
            bias: ``[H]``; None for zero. Ignored where there is a delta.
        """
        if delta is not None:
            # sum(delta * (delta G - 2 C)): the quadratic form's trace without a third product.
            return self.energy + float((delta * (delta @ self.gram - 2 * self.cross)).sum())
        if bias is not None:
            return self.energy + float((bias * (self.tokens * bias - 2 * self.missing)).sum())
        return self.energy


def solve(moments: Moments, ridge: float) -> tuple[Tensor, float]:
    """Return the delta that minimises the squared error plus ``ridge * mean(diag G) * |delta|^2``: ``C (G + ...)^-1``.

    Returns:
        The delta, float64 ``[H, K]``, and the ridge that was used. Where the Cholesky factor does not exist in float64
        the ridge is multiplied by ten until it does. Without any input the delta is zero.
    """
    scale = float(moments.gram.diagonal().mean())
    if scale == 0:
        return torch.zeros_like(moments.cross), ridge
    while True:
        damped = moments.gram.clone()
        damped.diagonal().add_(ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return torch.cholesky_solve(moments.cross.T, factor).T, ridge
        ridge *= 10
