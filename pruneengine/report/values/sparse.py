"""Values of a sparse prune in ``report.json``: everything its page shows, as plain values."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from pruneengine.evaluation.measures import Measures
from pruneengine.evaluation.perplexity import PerplexityResult
from pruneengine.report.values.structured import json_value, measured_values
from pruneengine.sparse.plan import SparsePlan
from pruneengine.sparse.prune import SparseReport
from pruneengine.sparse.zeros import ZeroCount


def sparse_summary(
    report: SparseReport, zeros: ZeroCount, dense: Measures, pruned: Measures, warnings: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the main numbers, which the model card shows."""
    plan = report.plan
    values: dict[str, Any] = {
        "method": plan.method,
        "pattern": plan.pattern,
        "allocation": plan.allocation,
        "sparsity asked": plan.asked,
        "sparsity reached": plan.reached,
        "weights": sum(math.prod(shape) for shape in plan.shapes.values()),
        "zeros planned": sum(plan.removed.values()),
        "zeros": zeros.total,
        "matrices": len(plan.removed),
        "matrices with other than the planned zeros": len(zeros.differing),
        "parameters": {"dense": dense.params, "pruned": pruned.params},
    } | measured_values(dense, pruned)
    if warnings:
        values["warnings"] = list(warnings)
    return json_value(values)


def sparse_details(report: SparseReport) -> dict[str, Any]:
    """Return the values of the figures: sparsity of every layer and linear, and the allocation's values of layers."""
    values: dict[str, Any] = {"layers": layer_rows(report.plan)}
    if report.allocation is not None and report.allocation.values:
        values["allocation values"] = list(report.allocation.values.items())
    return json_value(values)


def layer_rows(plan: SparsePlan) -> list[dict[str, Any]]:
    """Return ``{"layer", "sparsity", "linears": {name in the layer: sparsity}}`` of every decoder layer, in order."""
    layers: dict[int, list[str]] = {}
    for name in plan.removed:
        layers.setdefault(_place(name)[0], []).append(name)
    rows = []
    for layer, names in sorted(layers.items()):
        weights = sum(math.prod(plan.shapes[name]) for name in names)
        sparsity = sum(plan.removed[name] for name in names) / weights
        linears = {_place(name)[1]: plan.sparsity(name) for name in names}
        rows.append({"layer": layer, "sparsity": sparsity, "linears": linears})
    return rows


def sparse_hashes(
    report: SparseReport, calibration: str | None, evaluation: PerplexityResult | None = None
) -> dict[str, str]:
    """Return the hashes of the texts, as far as there were any, and of the plan."""
    of_texts = {"calibration text": calibration} if calibration else {}
    if evaluation is not None:
        of_texts["evaluation text"] = evaluation.samples
    return of_texts | {"plan": hashlib.sha256(report.plan.to_json().encode()).hexdigest()}


def speed_notes(plan: SparsePlan) -> tuple[str, ...]:
    """Return what gets faster and what does not, one paragraph each."""
    dense = (
        "The zeros are stored as numbers in dense matrices. The files are as large as the unpruned model's, and "
        "ordinary runtimes (transformers, vLLM, llama.cpp) load them as they load any model, take as much memory, and "
        "run at the same speed. Only a compressed copy of the files gets smaller."
    )
    return dense, _hardware(plan)


def _place(name: str) -> tuple[int, str]:
    """Return layer and the linear's name in it: ``model.layers.3.mlp.up_proj`` is ``(3, "mlp.up_proj")``."""
    parts = name.split(".")
    at = next(i for i, part in enumerate(parts) if part.isdigit())
    return int(parts[at]), ".".join(parts[at + 1 :])


def _hardware(plan: SparsePlan) -> str:
    """Return the paragraph of the hardware that multiplies the pattern faster."""
    halves = [name for name in plan.removed if plan.pattern == "2:4" and plan.kept_of_group(name) == 2]
    if not halves:
        return (
            f"We know of no maintained runtime of language models that multiplies {plan.pattern} matrices faster than "
            "dense ones; only 2:4 has hardware behind it."
        )
    some = "All" if len(halves) == len(plan.removed) else f"{len(halves)} of the {len(plan.removed)}"
    return (
        f"{some} matrices are 2:4, which the sparse tensor cores of NVIDIA GPUs (from Ampere on) multiply up to twice"
        " as fast in half precision, for example through torch.sparse.to_sparse_semi_structured (cuSPARSELt). That"
        " takes a program that asks for it: vLLM has removed its 2:4 kernels, compressed-tensors its sparse formats."
    )
