"""Cases of the benchmark: inputs, the op, the formula that it must equal and beat, and the bytes that must move."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pruneengine.bench.shapes import Layer, Matrix, Shape

# Returns None, or in words the difference of a result from the expected one.
Agree = Callable[[Any, Any], str | None]


class Inputs:
    """Source of random tensors of one dtype on one device, the same each time."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    @property
    def on_gpu(self) -> bool:
        """True on a CUDA device."""
        return self.device.type == "cuda"

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal values."""
        return torch.randn(shape, generator=self._generator, device=self.device).to(self.dtype)

    def norm(self, size: int) -> Tensor:
        """Return a positive float32 factor per column, like an activation norm."""
        return torch.rand(size, generator=self._generator, device=self.device) + 0.1

    def kept(self, size: int, keep: float) -> Tensor:
        """Return a sorted random index of the share ``keep`` of ``size``."""
        order = torch.randperm(size, generator=self._generator, device=self.device)
        return order[: max(1, round(size * keep))].sort().values

    def touched(self, index: Tensor, element_bytes: int) -> int:
        """Return the bytes of a contiguous row that a gather of ``index`` must read: whole cache lines or sectors."""
        line = 32 if self.on_gpu else 64
        return (index * element_bytes // line).unique().numel() * line


def single(tensor: Tensor) -> Tensor:
    """Return the tensor in float32."""
    return tensor.float()


def double(tensor: Tensor) -> Tensor:
    """Return the tensor in float64."""
    return tensor.double()


@dataclass(frozen=True)
class Baseline:
    """Another implementation in eager torch; its gate may be looser where it is less exact."""

    run: Callable[..., Any]
    agree: Agree | None = None


@dataclass(frozen=True)
class Work:
    """One case with its inputs. Every callable takes ``*inputs``; ``formula`` takes an upcast before them."""

    inputs: tuple[Any, ...]
    ours: Callable[..., Any]
    formula: Callable[..., Any]
    agree: Agree
    moved: int
    flops: int = 0
    expected: Callable[..., Any] | None = None  # where float64 in the formula is not the specification
    loosely: Agree | None = None  # for the formula itself, and against it, where it is less exact
    baselines: Mapping[str, Baseline] = field(default_factory=dict)

    def reference(self, *inputs: Any) -> Any:
        """Return the formula in float32: the code that a user of eager torch writes."""
        return self.formula(single, *inputs)

    def specified(self) -> Any:
        """Return the result that all providers must agree with: in float64, or exact."""
        make = self.expected or functools.partial(self.formula, double)
        return make(*self.inputs)


@dataclass(frozen=True)
class Case:
    """A case by name, with its maker for a shape and the small odd shape of its gate."""

    op: str
    name: str
    kind: str  # of shape: weight, tokens or layer
    limit: str  # of the machine: read, copy or matmul; on a GPU read counts as copy
    make: Callable[[Inputs, Any], Work]
    gate: Shape
    gpu_only: bool = False
    graph: bool = False  # on a GPU the calls are captured once and replayed
    compiled: bool = True  # torch.compile takes part

    @property
    def title(self) -> str:
        """Op and name, for reports."""
        return f"{self.op}: {self.name}"


GATES: dict[str, Shape] = {
    "weight": Matrix(37, 1001),
    "tokens": Matrix(39, 101),
    "layer": Layer(96, 204, 6, 3, 2),
}
CASES: list[Case] = []
Make = Callable[[Inputs, Any], Work]


def case(
    op: str, name: str, kind: str, limit: str, gate: Shape | None = None, **options: bool
) -> Callable[[Make], Make]:
    """Return a decorator that registers ``make(inputs, shape) -> Work`` as a case."""

    def register(make: Make) -> Make:
        CASES.append(Case(op, name, kind, limit, make, gate or GATES[kind], **options))
        return make

    return register


def size(*tensors: Tensor) -> int:
    """Return the bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
