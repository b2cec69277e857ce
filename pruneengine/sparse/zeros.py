"""Counts of the zeros in a model's weights, compared with the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pruneengine.model import get_linear
from pruneengine.sparse.plan import SparsePlan


@dataclass(frozen=True)
class ZeroCount:
    """Zeros in every matrix of a plan.

    Attributes:
        zeros: by the linear's module path.
        differing: difference from the planned number, for the matrices that have one. More zeros than planned are
            possible where a dense weight was zero already.
    """

    zeros: dict[str, int]
    differing: dict[str, int]

    @classmethod
    def against(cls, plan: SparsePlan, zeros: Mapping[str, int]) -> ZeroCount:
        """Return the counts of the plan's matrices; raise KeyError for a matrix that was not counted."""
        differing = {name: zeros[name] - planned for name, planned in plan.removed.items() if zeros[name] != planned}
        return cls({name: zeros[name] for name in plan.removed}, differing)

    @property
    def total(self) -> int:
        """Zeros in all matrices together."""
        return sum(self.zeros.values())


def count_zeros(model: nn.Module, plan: SparsePlan) -> ZeroCount:
    """Return the number of zeros in each weight that a plan names."""
    return ZeroCount.against(plan, {name: int((get_linear(model, name).weight == 0).sum()) for name in plan.removed})
