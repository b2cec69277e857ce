"""Shapes of the benchmark by name: weights of known models, activations, whole layers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from pruneengine.common.errors import InputError


@dataclass(frozen=True)
class Layer:
    """A decoder layer's linear weights, and the number of such layers in its model."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    count: int

    def __str__(self) -> str:
        return f"{self.hidden}/{self.intermediate}"

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def weights(self) -> tuple[tuple[int, int], ...]:
        """``(R, C)`` of q, k, v, o, gate, up and down."""
        kv = self.kv_heads * self.head_dim
        attention = (self.hidden, self.hidden), (kv, self.hidden), (kv, self.hidden), (self.hidden, self.hidden)
        wide = (self.intermediate, self.hidden)
        return *attention, wide, wide, wide[::-1]


@dataclass(frozen=True)
class Matrix:
    """Rows and columns of a weight, or tokens and channels of activations."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


Shape = Matrix | Layer


@dataclass(frozen=True)
class Shapes:
    """Shapes of one name: a tuple for every kind of case."""

    weight: tuple[Matrix, ...]
    tokens: tuple[Matrix, ...]
    layer: tuple[Layer, ...]

    def of_kind(self, kind: str) -> tuple[Shape, ...]:
        """Return the shapes for cases of a kind: weight, tokens or layer."""
        return getattr(self, kind)


LLAMA_7B = Layer(4096, 11008, 32, 32, 32)
SMOLLM2 = Layer(576, 1536, 9, 3, 30)
SETS = {
    "headline": Shapes((Matrix(4096, 11008),), (Matrix(8192, 4096),), (LLAMA_7B,)),
    "llama-7b": Shapes(
        (Matrix(4096, 4096), Matrix(11008, 4096), Matrix(4096, 11008)), (Matrix(8192, 4096),), (LLAMA_7B,)
    ),
    "smollm2": Shapes((Matrix(576, 576), Matrix(1536, 576), Matrix(576, 1536)), (Matrix(4096, 576),), (SMOLLM2,)),
}
DTYPES = {
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32,
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
}  # fmt: skip


def parse_shapes(name: str) -> Shapes:
    """Return a set by name, or for ``RxC`` weights and activations of that shape and a layer R wide, C inside.

    Raises:
        ValueError: the name is neither a set nor a shape.
    """
    if name in SETS:
        return SETS[name]
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", name):
        raise InputError(f"shapes {name!r}: expected {', '.join(SETS)}, or ROWSxCOLUMNS")
    rows, columns = map(int, name.split("x"))
    heads = math.gcd(rows, 4)
    return Shapes((Matrix(rows, columns),), (Matrix(rows, columns),), (Layer(rows, columns, heads, heads, 2),))


def short(dtype: torch.dtype) -> str:
    """Return ``bf16``, ``fp16`` or ``fp32``."""
    return next(name for name, value in DTYPES.items() if value == dtype and len(name) == 4)
