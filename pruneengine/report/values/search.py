"""Main numbers of a search, by either method: the part of ``report.json`` that the model card shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruneengine.evaluation.measures import Measures
from pruneengine.report.values.sparse import sparse_summary
from pruneengine.report.values.structured import measured_values
from pruneengine.search.adapruner.result import SearchResult
from pruneengine.search.dsa.result import DsaResult
from pruneengine.sparse.prune import SparseReport
from pruneengine.sparse.zeros import ZeroCount


def search_summary(result: SearchResult, dense: Measures, pruned: Measures) -> dict[str, Any]:
    """Return the main numbers of a search over plans."""
    return {
        "method": "adapruner",
        "ratio asked": result.plan.asked,
        "ratio reached": result.plan.reached,
        "parameters": {"dense": dense.params, "pruned": pruned.params},
        "winner": result.winner.name,
        "compensation": result.winner.compensation,
        "trials run": len(result.trials),
    } | measured_values(dense, pruned)


def dsa_summary(
    result: DsaResult,
    report: SparseReport,
    zeros: ZeroCount,
    dense: Measures,
    pruned: Measures,
    warnings: tuple[str, ...],
) -> dict[str, Any]:
    """Return the main numbers of a search for an allocation function, and of the prune by its winner."""
    values = sparse_summary(report, zeros, dense, pruned, warnings)
    winner = result.winner.entrant
    function = {} if winner.function is None else {"function": str(winner.function)}
    return values | {"winner": winner.name} | function | {"trials run": len(result.trials)}


def with_search(seconds: Mapping[str, float], search: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of a job and, named as such, those of its search."""
    return dict(seconds) | {f"search: {stage}": spent for stage, spent in search.items()}
