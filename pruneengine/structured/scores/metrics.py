"""Importance metrics by name: one member of a group -> a float32 vector over its rows or columns.

To add one: write a function of a :class:`MemberView` and register it with the quantities it needs. Return None for a
member that takes no part.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from pruneengine import ops
from pruneengine.calibration.statistics import Statistics
from pruneengine.common.errors import InputError
from pruneengine.model import Member


@dataclass(frozen=True)
class MemberView:
    """The input of a metric: the weight of one linear (or of a member's rows of it) and the statistics of the model."""

    member: Member
    weight: Tensor
    statistics: Statistics | None
    seed: int

    @property
    def collected(self) -> Statistics:
        """The statistics; ValueError for a metric that reads some where none were given."""
        if self.statistics is None:
            raise InputError(f"the metric reads statistics of {self.member.name}, got none")
        return self.statistics

    def weight_sums(self, power: float, norm: Tensor | None = None) -> Tensor:
        """Return the sum of ``|W|^power * norm`` over each row (axis 0) or column (axis 1)."""
        return ops.weight_scores(self.weight, norm, power)[self.member.axis]

    def mean(self, quantity: str, of: str = "x") -> Tensor:
        """Return a quantity's mean over samples for the member's rows or columns; ``of`` as :meth:`Statistics.mean`."""
        return self.member.select(self.collected.mean(quantity, self.member.module, of))

    def input_norm(self) -> Tensor:
        """Return Wanda's norm of each input channel of the linear."""
        return self.collected.input_norm(self.member.site).to(self.weight.device)

    def input_squares(self) -> Tensor:
        """Return the mean over samples of the sum over tokens of x^2, per input channel of the linear."""
        return self.collected.mean("squares", self.member.site).to(self.weight.device)

    def input_fluctuation(self) -> Tensor:
        """Return :meth:`input_squares` of ``x`` less its mean over the tokens there; float32 ``[C]``.

        Divided by the tokens per sample it is the variance over the calibration tokens (FLAP, An et al. 2024).
        """
        squares, total = (self.collected.mean(q, self.member.site).double() for q in ("squares", "sum"))
        # The difference of two large numbers may end a hair below zero.
        spread = (squares - total.square() / self.collected.tokens(self.member.site)).clamp_min(0)
        return spread.float().to(self.weight.device)


# A metric's function; None for a member that takes no part.
MetricFunction: TypeAlias = Callable[[MemberView], Tensor | None]


@dataclass(frozen=True)
class Metric:
    """A named metric: its function, the quantities of the statistics that it needs, and a summary in one line."""

    name: str
    needs: frozenset[str]
    of: MetricFunction
    summary: str


METRICS: dict[str, Metric] = {}

Function = TypeVar("Function", bound=MetricFunction)


def metric(name: str, needs: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Return a decorator that registers a metric under ``name``; ``needs`` are quantities of :class:`Statistics`."""

    def register(function: Function) -> Function:
        METRICS[name] = Metric(name, frozenset(needs), function, (function.__doc__ or "").split("\n")[0])
        return function

    return register


def get_metric(name: str) -> Metric:
    """Return a metric by name; ValueError with the known names if there is none."""
    if name not in METRICS:
        raise InputError(f"unknown method {name!r}; choose from {', '.join(METRICS)}")
    return METRICS[name]


@metric("random")
def _random(view: MemberView) -> Tensor:
    """Return uniform noise, fixed by the seed: the control every other metric must beat."""
    generator = torch.Generator().manual_seed(view.seed * 1_000_003 + zlib.crc32(view.member.name.encode()))
    return torch.rand(view.weight.shape[view.member.axis], generator=generator)


@metric("magnitude_l1")
def _magnitude_l1(view: MemberView) -> Tensor:
    """Return the sum of |W|."""
    return view.weight_sums(1.0)


@metric("magnitude_l2")
def _magnitude_l2(view: MemberView) -> Tensor:
    """Return the sum of W^2."""
    return view.weight_sums(2.0)


@metric("wanda", needs=("squares",))
def _wanda(view: MemberView) -> Tensor:
    """Return the sum of |W| times the L2 norm of the input channel (Wanda, Sun et al. 2023, eq. 1, per unit)."""
    return view.weight_sums(1.0, view.input_norm())


@metric("energy", needs=("squares",))
def _energy(view: MemberView) -> Tensor | None:
    """Return the squared output error of removing an input channel of o_proj or down_proj: |W_c|^2 * sum of x_c^2."""
    return view.weight_sums(2.0, view.input_squares()) if view.member.axis == 1 else None


@metric("vectorize", needs=("signed",))
def _vectorize(view: MemberView) -> Tensor:
    """Return LLM-Pruner's vector-wise Taylor: |sum of w*g|, g the gradient of the mean loss."""
    return view.mean("signed").abs()


@metric("param_first", needs=("abs_mean",))
def _param_first(view: MemberView) -> Tensor:
    """Return LLM-Pruner's Element^1: sum of |w*g|, g the gradient of the mean loss."""
    return view.mean("abs_mean")


@metric("param_second", needs=("fisher",))
def _param_second(view: MemberView) -> Tensor:
    """Return LLM-Pruner's Element^2: sum of w^2*F, F the mean over samples of g_n^2 (diagonal Fisher)."""
    return view.mean("fisher")


@metric("param_mix", needs=("mix",))
def _param_mix(view: MemberView) -> Tensor:
    """Return LLM-Pruner's mixed order: sum of |w*g - w^2*F/2|."""
    return view.mean("mix")
