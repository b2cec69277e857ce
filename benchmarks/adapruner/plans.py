"""Winning plans of measured cells, decided again from the pool's statistics, without a forward pass or a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.adapruner.cells import Bench, Cell
from pruneengine import Plan
from pruneengine.search.adapruner.baselines import baselines, masked
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.planner import CandidatePlanner
from pruneengine.search.adapruner.pool import collect_pool
from pruneengine.search.adapruner.search import quantities, subset_options
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.search.adapruner.texts import search_texts


def write_plans(bench: Bench, cells: list[Cell], folder: Path) -> list[Path]:
    """``adapruner-<shape>-<ratio>-<seed>.json`` of every measured cell that was searched by TPE.

    Raises:
        FileNotFoundError: the statistics that a cell was searched on are no longer in the work folder.
        ValueError: a plan that removes another fraction than its cell says.
    """
    paths = []
    for cell in cells:
        found = bench.result(cell)
        if found is None or cell.sampler != "tpe":
            continue
        paths.append(folder / f"adapruner-{cell.shape}-{cell.ratio:g}-{cell.seed}.json")
        winning_plan(bench, bench.configured(cell), found["search"]).save(paths[-1])
    return paths


def winning_plan(bench: Bench, config: AdaPrunerConfig, search: dict[str, Any]) -> Plan:
    """What the best of a search keeps; ``search`` is :meth:`SearchResult.to_dict`'s."""
    texts = search_texts(config, bench.tokenizer)
    pool = collect_pool(
        bench.model, texts.pool, quantities(), subset_options(texts, config),
        structure=bench.structure, kinds=config.kinds, layers=config.layer_range(bench.structure.num_layers),
        batch_size=config.batch_size, cache=bench.work, collect=False,
    )  # fmt: skip
    planner = CandidatePlanner(bench.model, bench.structure, pool, config)
    best = search["best"]
    if best["number"] is None:
        plan = masked(next(b for b in baselines(config) if b.name == best["name"]), planner).plan
    else:
        plan = planner.plan(Candidate.from_dict(best["params"])).plan
    if plan.reached != search["reached"]:
        raise ValueError(f"{best['name']} removes {plan.reached:.6f}, its cell says {search['reached']:.6f}")
    return plan
