"""Values of a structured prune in ``report.json``: everything its page shows, as plain values."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from pruneengine.common.errors import InputTypeError
from pruneengine.evaluation.measures import Measures
from pruneengine.evaluation.perplexity import PerplexityResult, paired_difference
from pruneengine.model import part_of
from pruneengine.report.figures.layers import CELLS
from pruneengine.report.values.blends import blends
from pruneengine.structured.plan import Plan
from pruneengine.structured.prune import PruneReport
from pruneengine.structured.scores.score import Scores


def summary(report: PruneReport, dense: Measures, pruned: Measures, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the main numbers of a prune, which the model card shows."""
    plan = report.plan
    values: dict[str, Any] = {
        "method": report.config.method,
        "ratio asked": plan.asked,
        "ratio reached": plan.reached,
        "parameters": {"dense": plan.params_before, "pruned": pruned.params},
    } | measured_values(dense, pruned)
    if report.fit is not None:
        values["fit"] = {"loss by step": report.fit.checks, "step kept": report.fit.best}
    if report.compensation is not None:
        values["compensation"] = report.compensation.to_dict()
    if warnings:
        values["warnings"] = list(warnings)
    return json_value(values)


def measured_values(dense: Measures, pruned: Measures) -> dict[str, Any]:
    """Return both sides of the before-and-after table, and the paired difference of their losses.

    A pruned model without a perplexity where the dense one has it is one whose loss is not finite: None.
    """
    values: dict[str, Any] = {"weight bytes": {"dense": dense.weight_bytes, "pruned": pruned.weight_bytes}}
    if dense.perplexity:
        after = pruned.perplexity.perplexity if pruned.perplexity else None
        values["perplexity"] = {"dense": dense.perplexity.perplexity, "pruned": after}
        values["perplexity tokens"] = dense.perplexity.tokens
        values["perplexity dtype"] = dense.perplexity.dtype
        if pruned.perplexity and len(dense.perplexity.per_window) > 1:
            loss = paired_difference(dense.perplexity, pruned.perplexity)
            values["loss difference"] = {"mean": loss.mean, "standard error": loss.standard_error}
    if dense.speed and pruned.speed:
        values["tokens per second"] = {"dense": asdict(dense.speed), "pruned": asdict(pruned.speed)}
    return values


def details(report: PruneReport) -> dict[str, Any]:
    """Return the values of the figures: the plan, the spread of the scores, and the blend of a fused method."""
    values: dict[str, Any] = {
        "kinds": list(report.plan.kinds),
        "shape": report.plan.shape,
        "plan": plan_columns(report.plan),
        "scores": score_rows(report.scores),
    }
    if report.scores.blend is not None:
        values["blends"] = blends(report.scores, report.plan)
    if report.fit is not None:
        values["fit losses"] = list(report.fit.losses)
    return json_value(values)


def hashes(report: PruneReport, evaluation: PerplexityResult | None = None) -> dict[str, str]:
    """Return the hashes of dense model and calibration text (where statistics were read), evaluation text and plan."""
    by_name: dict[str, str] = {}
    if report.statistics is not None:
        by_name |= {"dense model": report.statistics.model, "calibration text": report.statistics.data}
    if evaluation is not None:
        by_name["evaluation text"] = evaluation.samples
    return by_name | {"plan": hashlib.sha256(report.plan.to_json().encode()).hexdigest()}


def plan_columns(plan: Plan) -> dict[str, dict[str, list[Any]]]:
    """Return ``{kind: {"units", "kept"}}``, one entry per layer.

    Where units are few, ``"which"`` marks every unit as kept (1) or not (0). Of experts: the channels of a layer's
    experts together, and the experts that stay.
    """
    columns: dict[str, dict[str, list[Any]]] = {}
    experts: dict[int, list[str]] = {}
    for name, units in plan.units.items():
        (layer, part), kept = part_of(name), plan.keep.get(name, ())
        column = columns.setdefault(part, {"units": [], "kept": [], "which": []})
        if part == "experts.mlp":
            experts.setdefault(layer, []).append("01"[name in plan.keep])
            if len(experts[layer]) > 1:
                column["units"][-1] += units
                column["kept"][-1] += len(kept)
                continue
        column["units"].append(units)
        column["kept"].append(len(kept))
        stays, few = set(kept), units <= CELLS and part != "experts.mlp"
        column["which"].append("".join("01"[unit in stays] for unit in range(units)) if few else "")
    if plan.lost_experts:
        which = ["".join(marks) for marks in experts.values()]
        counts = {"units": [*map(len, which)], "kept": [marks.count("1") for marks in which]}
        columns["experts"] = counts | {"which": which}
    return {kind: _without_marks(column) for kind, column in columns.items()}


def _without_marks(column: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return a column without its marks, unless every layer has them."""
    return column if all(column["which"]) else {key: column[key] for key in ("units", "kept")}


def score_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return least, quartiles and most of every group's scores."""
    rows = []
    for name, values in scores.groups.items():
        layer, kind = part_of(name)
        spread = torch.quantile(values.double().cpu(), torch.linspace(0, 1, 5, dtype=torch.float64)).tolist()
        named = dict(zip(("least", "quartile", "median", "third quartile", "most"), spread, strict=True))
        rows.append({"kind": kind, "layer": layer} | named)
    return rows


def json_value(value: Any) -> Any:
    """Return plain JSON: tuples as lists, dataclasses as objects, keys as text, and null for what is not finite.

    Characters that neither HTML nor UTF-8 can write (controls, lone surrogates) are replaced.

    Raises:
        TypeError: something else than data.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return json_value(asdict(value))
    if isinstance(value, Mapping):
        return {_text(str(key)): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, Tensor):
        return json_value(value.tolist())
    if isinstance(value, str | PurePath):
        return _text(str(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    raise InputTypeError(f"a report holds plain values, got {type(value).__name__}: {value!r}")


def _text(value: str) -> str:
    """Return text with the characters replaced that neither HTML nor UTF-8 can write."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value)
