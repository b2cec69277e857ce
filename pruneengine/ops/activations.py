"""Ops that read activations: statistics over tokens, and activations times their gradients."""

from __future__ import annotations

from torch import Tensor

from pruneengine.ops.checks import require_float, require_like
from pruneengine.ops.registry import floats, register


def _check_activation_stats(x: Tensor) -> None:
    require_float("x", x, "[N, T, C]")


def _check_gate_scores(x: Tensor, dx: Tensor) -> None:
    require_float("x", x, "[N, T, C]")
    require_like("dx", dx, "x", x)


_activation_stats = register(
    "activation_stats",
    "(Tensor x) -> (Tensor, Tensor, Tensor)",
    _check_activation_stats,
    lambda x: tuple(floats(x, x.shape[0], x.shape[2]) for _ in range(3)),
)
_gate_scores = register(
    "gate_scores",
    "(Tensor x, Tensor dx) -> Tensor",
    _check_gate_scores,
    lambda x, dx: floats(x, x.shape[0], x.shape[2]),
)


def activation_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum, sum of squares and largest magnitude over tokens, per sample and channel.

    Args:
        x: activations ``[N, T, C]``, float32, float16 or bfloat16, any strides.

    Returns:
        ``(total, squares, peak)``, each float32 ``[N, C]``; all zero when ``T == 0``.

    Raises:
        TypeError: another dtype.
        ValueError: another number of dimensions.
    """
    return _activation_stats(x)


def gate_scores(x: Tensor, dx: Tensor) -> Tensor:
    """Return the sum over tokens of ``x * dL/dx``, per sample and channel: float32 ``[N, C]``.

    The sum is minus the first-order change of the loss when the channel is gated to zero. At a linear layer's output it
    equals the row sums of ``W * dL/dW``, at its input the column sums (LLM-Pruner's ``vectorize``, Ma et al. 2023).

    Args:
        x: activations ``[N, T, C]``, float32, float16 or bfloat16, any strides.
        dx: gradient of the loss at ``x``, same shape and dtype.

    Raises:
        TypeError: another dtype, or two different ones.
        ValueError: another shape, or two different ones or devices.
    """
    return _gate_scores(x, dx)
