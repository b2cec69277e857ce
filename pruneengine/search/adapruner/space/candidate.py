"""Candidate of a search: samples, metric and allocation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.common.validation import from_known
from pruneengine.search.adapruner.space.curves import Curve
from pruneengine.search.adapruner.space.subsets import Subset
from pruneengine.structured.scores.metric_family import MetricPoint

FILLS = ("zero", "mean")


@dataclass(frozen=True)
class Candidate:
    """One point of the space.

    Attributes:
        subset: the calibration samples.
        metric: the metric that scores units.
        curve: spread of the ratio over depth and kinds, for a per-layer plan.
        kv_groups: number of KV groups removed from every layer, for a uniform plan.
        fill: value of removed channels: "zero", or their "mean", which a bias can hold.
    """

    subset: Subset
    metric: MetricPoint
    curve: Curve | None = None
    kv_groups: int | None = None
    fill: str = "zero"

    def __post_init__(self) -> None:
        if (self.curve is None) == (self.kv_groups is None):
            raise InputError(f"a candidate has a curve or a number of KV groups, got {self.curve} and {self.kv_groups}")
        if self.fill not in FILLS:
            raise InputError(f"unknown fill {self.fill!r}; choose from {', '.join(FILLS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a report."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Candidate:
        """Return the candidate of :meth:`to_dict`'s values; raise ValueError for unknown keys, with the known ones."""
        parts = {
            "subset": from_known(Subset, values["subset"], "key"),
            "metric": MetricPoint.from_dict(values["metric"]),
            "curve": Curve.from_dict(values["curve"]) if values.get("curve") is not None else None,
        }
        return from_known(cls, dict(values) | parts, "key")

    def in_words(self) -> dict[str, str]:
        """Return data, metric and allocation as one sentence each."""
        if self.curve is None:
            allocation = f"{self.kv_groups} KV groups of every layer go, channels make up the rest"
        else:
            allocation = self.curve.in_words()
        filled = "" if self.fill == "zero" else "; removed channels are replaced by their mean"
        return {"data": self.subset.in_words(), "metric": self.metric.in_words(), "allocation": allocation + filled}
