"""What a search proposes: which samples, which metric, which allocation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        metric: how units are scored.
        curve: how the ratio is spread over depth and kinds, of a per-layer plan.
        kv_groups: KV groups removed from every layer, of a uniform plan.
        fill: what removed channels turn into: "zero", or their "mean", which a bias can hold.
    """

    subset: Subset
    metric: MetricPoint
    curve: Curve | None = None
    kv_groups: int | None = None
    fill: str = "zero"

    def __post_init__(self) -> None:
        if (self.curve is None) == (self.kv_groups is None):
            raise ValueError(f"a candidate has a curve or a number of KV groups, got {self.curve} and {self.kv_groups}")
        if self.fill not in FILLS:
            raise ValueError(f"unknown fill {self.fill!r}; choose from {', '.join(FILLS)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a report."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Candidate:
        """The inverse of :meth:`to_dict`; ValueError for unknown keys, with the known ones."""
        parts = {
            "subset": from_known(Subset, values["subset"], "key"),
            "metric": MetricPoint.from_dict(values["metric"]),
            "curve": Curve.from_dict(values["curve"]) if values.get("curve") is not None else None,
        }
        return from_known(cls, dict(values) | parts, "key")

    def in_words(self) -> dict[str, str]:
        """Data, metric and allocation, a sentence each."""
        if self.curve is None:
            allocation = f"{self.kv_groups} KV groups of every layer go, channels make up the rest"
        else:
            allocation = self.curve.in_words()
        filled = "" if self.fill == "zero" else "; removed channels are replaced by their mean"
        return {"data": self.subset.in_words(), "metric": self.metric.in_words(), "allocation": allocation + filled}
