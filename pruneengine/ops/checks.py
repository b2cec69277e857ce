"""Argument checks of the ops; each error carries the value and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PLAIN = (Tensor, torch.nn.Parameter)


def require_plain(name: str, tensor: Tensor) -> None:
    """Raise TypeError for anything but a plain tensor: a subclass, as of a sharded weight, has no memory of its own.

    The tensors that torch traces a program with are let through; they reach no kernel.
    """
    kind = type(tensor)
    if kind not in PLAIN and not (issubclass(kind, Tensor) and kind.__module__.startswith("torch._subclasses")):
        raise TypeError(f"{name} is a {kind.__name__}; expected a plain torch.Tensor (gather a sharded one first)")


def require_float(name: str, tensor: Tensor, shape: str) -> None:
    require_plain(name, tensor)
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected float32, float16 or bfloat16")
    require_dims(name, tensor, shape)


def require_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    require_plain(name, tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {str(dtype).removeprefix('torch.')}")


def require_dims(name: str, tensor: Tensor, *shapes: str) -> None:
    require_plain(name, tensor)
    if tensor.dim() not in [shape.count(",") + 1 for shape in shapes]:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {' or '.join(shapes)}")


def require_rows(name: str, tensor: Tensor) -> None:
    if tensor.dim() == 2 and tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; expected contiguous rows, the last stride 1")


def require_beside(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}; expected {other.device}, where {other_name} is")


def require_shape(name: str, tensor: Tensor, shape: Sequence[int], why: str) -> None:
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {list(shape)}, {why}")


def require_like(name: str, tensor: Tensor, other_name: str, other: Tensor, *more: torch.dtype) -> None:
    require_plain(name, tensor)
    if tensor.dtype not in (other.dtype, *more):
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {' or '.join(map(str, {other.dtype, *more}))}")
    require_shape(name, tensor, other.shape, f"as {other_name}")
    require_beside(name, tensor, other_name, other)


def require_matrix(name: str, tensor: Tensor) -> None:
    """Raise an error unless it is a float ``[R, C]`` with contiguous rows, and columns that an int32 can count."""
    require_float(name, tensor, "[R, C]")
    require_rows(name, tensor)
    if tensor.shape[1] >= 2**31:
        raise ValueError(f"{name} has {tensor.shape[1]} columns; expected fewer than 2^31")


def require_norm(norm: Tensor | None, matrix_name: str, matrix: Tensor, name: str = "norm") -> None:
    """Raise an error unless the norm is None or has one float32 factor per column."""
    if norm is None:
        return
    require_dtype(name, norm, torch.float32)
    require_shape(name, norm, matrix.shape[1:], "one factor per column")
    require_beside(name, norm, matrix_name, matrix)


def require_exponent(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; expected a finite number > 0")


def require_unit(name: str, unit: int, size: int) -> None:
    if unit < 1 or size % unit:
        raise ValueError(f"{name} is {unit}; expected a divisor of {size}")


def require_range(index: Tensor, bound: int) -> None:
    # On a GPU reading the index would wait for the device; there the kernels stop on a bad index themselves.
    if index.is_cuda or index.numel() == 0:
        return
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= bound:
        raise ValueError(f"index holds {low if low < 0 else high}; expected 0 <= index < {bound}")
