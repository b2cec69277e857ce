"""First step and report that structured and sparse pruning share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.progress import Stopwatch
from pruneengine.model import Structure, find_groups, model_fingerprint
from pruneengine.model.experts import unfuse_experts

Config = TypeVar("Config")
AnyPlan = TypeVar("AnyPlan")


@dataclass(frozen=True, eq=False, kw_only=True)
class PruningReport(Generic[Config, AnyPlan]):
    """The decision of a prune and its sources.

    Attributes:
        config: the config as asked.
        plan: the decision.
        statistics: of the dense model; None where none were read.
        seconds: seconds by stage.
        warnings: sentences on what the calibration text leaves open, or on what went otherwise than asked.
    """

    config: Config
    plan: AnyPlan
    statistics: Statistics | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def stages(self) -> str:
        """The stages and their seconds in one line."""
        return ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())


def find_structure(model: nn.Module, statistics: Statistics | None, clock: Stopwatch) -> Structure:
    """Return the structure of a model, whose fused experts become linears first.

    Args:
        model: a transformers causal language model of a family that :func:`find_groups` knows.
        statistics: refused if they are of another model; None for none.
        clock: gains "structure".

    Raises:
        ValueError: a model of an unknown family, or statistics of another model.
    """
    with clock("structure"):
        structure = find_groups(unfuse_experts(model))
    if statistics is not None:
        statistics.check(model=model_fingerprint(model))
    return structure
