"""The public ops: one function each, which checks its arguments and runs on the backend for their device.

Backends: ``cuda`` and ``cpp`` (the compiled extension), ``triton`` and ``reference`` (plain PyTorch, the specification
in :mod:`pruneengine.reference`). On CUDA tensors the order is cuda, triton, reference; on CPU tensors cpp, reference;
``use_backend`` forces one. Every op is also ``torch.ops.pruneengine.<name>`` with a fake implementation, so that
``torch.compile`` keeps it whole. No op is differentiable: arguments are detached. NaN is not looked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pruneengine import backends
from pruneengine.backends import available_backends, use_backend

__all__ = [
    "activation_stats",
    "available_backends",
    "gate_scores",
    "gather_columns",
    "gather_rows",
    "kth_value",
    "select_mask",
    "taylor_scores",
    "use_backend",
    "weight_scores",
]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _require_float(name: str, tensor: Tensor, shape: str) -> None:
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected float32, float16 or bfloat16")
    _require_dims(name, tensor, shape)


def _require_dims(name: str, tensor: Tensor, *shapes: str) -> None:
    if tensor.dim() not in [shape.count(",") + 1 for shape in shapes]:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {' or '.join(shapes)}")


def _require_rows(name: str, tensor: Tensor) -> None:
    if tensor.dim() == 2 and tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; expected contiguous rows, the last stride 1")


def _require_beside(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}; expected {other.device}, where {other_name} is")


def _require_like(name: str, tensor: Tensor, other_name: str, other: Tensor, *more: torch.dtype) -> None:
    if tensor.dtype not in (other.dtype, *more):
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {' or '.join(map(str, {other.dtype, *more}))}")
    if tensor.shape != other.shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {list(other.shape)}, as {other_name}")
    _require_beside(name, tensor, other_name, other)


def _check_activation_stats(x: Tensor) -> None:
    _require_float("x", x, "[N, T, C]")


def _check_gate_scores(x: Tensor, dx: Tensor) -> None:
    _require_float("x", x, "[N, T, C]")
    _require_like("dx", dx, "x", x)


def _check_weight_scores(weight: Tensor, norm: Tensor | None, power: float, norm_power: float) -> None:
    _require_float("weight", weight, "[R, C]")
    _require_rows("weight", weight)
    for name, value in (("power", power), ("norm_power", norm_power)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}; expected a finite number > 0")
    if norm is None:
        return
    if norm.dtype != torch.float32:
        raise TypeError(f"norm has dtype {norm.dtype}; expected float32")
    if norm.dim() != 1 or norm.shape[0] != weight.shape[1]:
        raise ValueError(f"norm has shape {list(norm.shape)}; expected [{weight.shape[1]}], one factor per column")
    _require_beside("norm", norm, "weight", weight)


def _check_taylor_scores(weight: Tensor, gradient: Tensor) -> None:
    _require_float("weight", weight, "[R, C]")
    _require_like("gradient", gradient, "weight", weight, torch.float32)
    _require_rows("weight", weight)
    _require_rows("gradient", gradient)


def _check_scores(scores: Tensor, k: int, lowest: int) -> None:
    _require_float("scores", scores, "[R, C]")
    _require_rows("scores", scores)
    if scores.shape[1] >= 2**31:
        raise ValueError(f"scores has {scores.shape[1]} columns; expected fewer than 2^31")
    if not lowest <= k <= scores.shape[1]:
        raise ValueError(f"k is {k}; expected {lowest} <= k <= {scores.shape[1]}, the columns of scores")


def _check_gather(weight: Tensor, index: Tensor, *shapes: str) -> None:
    if weight.element_size() not in (1, 2, 4, 8):
        raise TypeError(f"weight has dtype {weight.dtype}; expected one of 1, 2, 4 or 8 bytes")
    _require_dims("weight", weight, *shapes)
    _require_rows("weight", weight)
    if index.dtype != torch.int64:
        raise TypeError(f"index has dtype {index.dtype}; expected int64")
    _require_dims("index", index, "[K]")
    _require_beside("index", index, "weight", weight)


def _require_range(index: Tensor, bound: int) -> None:
    # On a GPU the look would wait for the device; there the kernels stop on a bad index themselves.
    if index.is_cuda or index.numel() == 0:
        return
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= bound:
        raise ValueError(f"index holds {low if low < 0 else high}; expected 0 <= index < {bound}")


def _floats(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _register(
    name: str, schema: str, check: Callable, fake: Callable, check_values: Callable = lambda *arguments: None
) -> Callable:
    """The op ``pruneengine::name``: shapes are checked for fake tensors too, values only for real ones.

    What comes back is called like the op, and leaves out the dispatcher, 40 microseconds a call, where nobody listens.
    """

    def op(*arguments: object) -> object:
        check(*arguments)
        check_values(*arguments)
        return backends.run(name, *arguments)

    def fake_op(*arguments: object) -> object:
        check(*arguments)
        return fake(*arguments)

    registered = torch.library.custom_op(f"pruneengine::{name}", op, mutates_args=(), schema=schema)
    registered.register_fake(fake_op)

    def call(*arguments: object) -> object:
        return op(*arguments) if _is_plain(arguments[0]) else registered(*arguments)

    return call


def _is_plain(tensor: Tensor) -> bool:
    """A real tensor in eager mode: no compiler, tracer, fake or subclass that has to see the op as one call."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type != "meta"
        and _get_current_dispatch_mode() is None
    )


_activation_stats = _register(
    "activation_stats",
    "(Tensor x) -> (Tensor, Tensor, Tensor)",
    _check_activation_stats,
    lambda x: tuple(_floats(x, x.shape[0], x.shape[2]) for _ in range(3)),
)
_gate_scores = _register(
    "gate_scores",
    "(Tensor x, Tensor dx) -> Tensor",
    _check_gate_scores,
    lambda x, dx: _floats(x, x.shape[0], x.shape[2]),
)
_weight_scores = _register(
    "weight_scores",
    "(Tensor weight, Tensor? norm, float power, float norm_power) -> (Tensor, Tensor)",
    _check_weight_scores,
    lambda weight, *_: (_floats(weight, weight.shape[0]), _floats(weight, weight.shape[1])),
)
_taylor_scores = _register(
    "taylor_scores",
    "(Tensor weight, Tensor gradient) -> (Tensor, Tensor)",
    _check_taylor_scores,
    lambda weight, gradient: (_floats(weight, 3, weight.shape[0]), _floats(weight, 3, weight.shape[1])),
)
_kth_value = _register(
    "kth_value",
    "(Tensor scores, int k) -> Tensor",
    lambda scores, k: _check_scores(scores, k, 1),
    lambda scores, k: _floats(scores, scores.shape[0]),
)
_select_mask = _register(
    "select_mask",
    "(Tensor scores, int k) -> Tensor",
    lambda scores, k: _check_scores(scores, k, 0),
    lambda scores, k: scores.new_empty(scores.shape, dtype=torch.bool),
)
_gather_rows = _register(
    "gather_rows",
    "(Tensor weight, Tensor index) -> Tensor",
    lambda weight, index: _check_gather(weight, index, "[R, C]", "[R]"),
    lambda weight, index: weight.new_empty(index.shape[0], *weight.shape[1:]),
    lambda weight, index: _require_range(index, weight.shape[0]),
)
_gather_columns = _register(
    "gather_columns",
    "(Tensor weight, Tensor index) -> Tensor",
    lambda weight, index: _check_gather(weight, index, "[R, C]"),
    lambda weight, index: weight.new_empty(weight.shape[0], index.shape[0]),
    lambda weight, index: _require_range(index, weight.shape[1]),
)


def activation_stats(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, sum of squares and largest magnitude over tokens, per sample and channel.

    Args:
        x: activations ``[N, T, C]``, float32, float16 or bfloat16, any strides.

    Returns:
        ``(total, squares, peak)``, each float32 ``[N, C]``; all zero when ``T == 0``.

    Raises:
        TypeError: another dtype.
        ValueError: another number of dimensions.
    """
    return _activation_stats(x.detach())


def gate_scores(x: Tensor, dx: Tensor) -> Tensor:
    """Sum over tokens of ``x * dL/dx``, per sample and channel: float32 ``[N, C]``.

    It is minus the first-order change of the loss when the channel is gated to zero; at a linear layer's output it
    equals the row sums of ``W * dL/dW``, at its input the column sums (LLM-Pruner's ``vectorize``, Ma et al. 2023).

    Args:
        x: activations ``[N, T, C]``, float32, float16 or bfloat16, any strides.
        dx: the gradient of the loss at ``x``, same shape and dtype.

    Raises:
        TypeError: another dtype, or two different ones.
        ValueError: another shape, or two different ones or devices.
    """
    return _gate_scores(x.detach(), dx.detach())


def weight_scores(
    weight: Tensor, norm: Tensor | None = None, power: float = 1.0, norm_power: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Row and column sums of ``|W|^power * norm^norm_power``; with the norms of the inputs, Wanda's score summed.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous (``stride(1) == 1``).
        norm: one non-negative float32 factor per column ``[C]`` (an activation norm), or None for 1.
        power: exponent of the magnitude, > 0.
        norm_power: exponent of the norm, > 0.

    Returns:
        ``(rows, columns)``: float32 ``[R]`` and ``[C]``.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or an exponent that is not > 0.
    """
    return _weight_scores(weight.detach(), None if norm is None else norm.detach(), float(power), float(norm_power))


def taylor_scores(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column sums of ``W * G``: signed, absolute and squared, in one read of both.

    Args:
        weight: ``[R, C]``, float32, float16 or bfloat16, rows contiguous.
        gradient: ``[R, C]``, float32 or the weight's dtype, rows contiguous.

    Returns:
        ``(rows, columns)``: float32 ``[3, R]`` and ``[3, C]``; index 0 is ``sum(w*g)``, 1 is ``sum(|w*g|)``,
        2 is ``sum((w*g)^2)``.

    Raises:
        TypeError: another dtype.
        ValueError: different shapes or devices, or rows that are not contiguous.
    """
    return _taylor_scores(weight.detach(), gradient.detach())


def kth_value(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest value of each row: float32 ``[R]``.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN.
        k: rank, counted from 1, at most ``C``.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, rows that are not contiguous, or a ``k`` out of range.
    """
    return _kth_value(scores.detach(), k)


def select_mask(scores: Tensor, k: int) -> Tensor:
    """True at exactly the k smallest scores of each row: bool ``[R, C]``.

    Of equal scores at the border those with the lowest column index are selected; ``-0.0`` and ``0.0`` are equal.

    Args:
        scores: ``[R, C]``, float32, float16 or bfloat16, rows contiguous, without NaN.
        k: how many a row, ``0 <= k <= C``.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, rows that are not contiguous, or a ``k`` out of range.
    """
    return _select_mask(scores.detach(), k)


def gather_rows(weight: Tensor, index: Tensor) -> Tensor:
    """The rows of ``weight`` named by ``index``, as a new contiguous tensor of the same dtype.

    Args:
        weight: ``[R, C]`` (or ``[R]``, a bias), any dtype of 1, 2, 4 or 8 bytes, rows contiguous.
        index: int64 ``[K]``, each in ``[0, R)``, in any order.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or on a CPU an index out of range (on a GPU
            that stops the kernel, as in torch).
    """
    return _gather_rows(weight.detach(), index)


def gather_columns(weight: Tensor, index: Tensor) -> Tensor:
    """The columns of ``weight`` named by ``index``, as a new contiguous tensor of the same dtype.

    Args:
        weight: ``[R, C]``, any dtype of 1, 2, 4 or 8 bytes, rows contiguous.
        index: int64 ``[K]``, each in ``[0, C)``, ascending or not.

    Raises:
        TypeError: another dtype.
        ValueError: another shape or device, rows that are not contiguous, or on a CPU an index out of range (on a GPU
            that stops the kernel, as in torch).
    """
    return _gather_columns(weight.detach(), index)
