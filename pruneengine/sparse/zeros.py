"""Zeros in the weights of a model, counted, and held against the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pruneengine.model import get_linear
from pruneengine.sparse.plan import SparsePlan


@dataclass(frozen=True)
class ZeroCount:
    """Zeros of every matrix of a plan, as found.

    Attributes:
        zeros: by the linear's module path.
        differing: matrices whose zeros are not as many as planned, with the difference. More of them are possible
            where a dense weight that stays was zero already.
    """

    zeros: dict[str, int]
    differing: dict[str, int]

    @classmethod
    def against(cls, plan: SparsePlan, zeros: Mapping[str, int]) -> ZeroCount:
        """What was counted for each of the plan's matrices; KeyError for one that was not."""
        differing = {name: zeros[name] - planned for name, planned in plan.removed.items() if zeros[name] != planned}
        return cls({name: zeros[name] for name in plan.removed}, differing)

    @property
    def total(self) -> int:
        return sum(self.zeros.values())


def count_zeros(model: nn.Module, plan: SparsePlan) -> ZeroCount:
    """Count the zeros in the weights that a plan names."""
    return ZeroCount.against(plan, {name: int((get_linear(model, name).weight == 0).sum()) for name in plan.removed})
