"""Joint search over calibration data, metric and allocation, after AdaPruner (Kong et al., AAAI 2025).

Statistics of the whole calibration pool are collected once. A trial looks up those of its samples, then scores,
allocates, plans and masks in milliseconds. It is judged by the masked model's loss on fixed text, block by block. The
best trials are compared again on text that the search never saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from pruneengine.calibration.statistics import QUANTITIES
from pruneengine.common.progress import Stopwatch
from pruneengine.model import find_groups
from pruneengine.model.experts import unfuse_experts
from pruneengine.search.adapruner import baselines as fixed
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.finals import pick_winner
from pruneengine.search.adapruner.objective import Objective
from pruneengine.search.adapruner.planner import CandidatePlanner
from pruneengine.search.adapruner.pool import SubsetOptions, collect_pool
from pruneengine.search.adapruner.records import importance, trial_records
from pruneengine.search.adapruner.result import SearchResult
from pruneengine.search.adapruner.space.kv_groups import legal_heads
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.adapruner.space.subsets import ALL
from pruneengine.search.adapruner.trials import AdaPrunerLoop
from pruneengine.search.run import SearchRun
from pruneengine.search.study import ORIGIN, START, open_study
from pruneengine.search.texts import SearchTexts
from pruneengine.search.workers import run_workers
from pruneengine.structured.prune import check_reachable

if TYPE_CHECKING:
    import optuna


def search(
    model: nn.Module,
    texts: SearchTexts,
    config: AdaPrunerConfig | None = None,
    run: SearchRun | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Search for the best plan; the weights of the model stay as they are.

    A search that was stopped, or killed, goes on where it was when it is called again with the same study and storage.

    Args:
        model: the dense model; fused experts get linears of their own, as by
            :func:`pruneengine.model.experts.unfuse_experts`.
        texts: tokens of the pool, the objective and the held-out blocks.
        config: the target and the space; defaults to :class:`AdaPrunerConfig`.
        run: storage of the study and number of workers; by default one worker, in memory.
        say: told of every stage as it begins.

    Raises:
        ValueError: a target or space without a legal plan, texts that do not fit, or a study about something else; all
            before the first forward pass.
        ConnectionError: the storage does not answer.
    """
    config, run = config or AdaPrunerConfig(), run or SearchRun()
    clock = Stopwatch()
    begun = time.monotonic()
    structure = find_groups(unfuse_experts(model))
    check_reachable(structure, config.prune_config)
    kv_groups = tuple(legal_heads(structure, config.ratio, config.kinds)) if config.shape == "uniform" else ()
    study = open_study(run.study, run.storage, run.identity(model, texts, "pool") | config.identity)
    say("collecting statistics of the calibration pool")
    layers = config.layer_range(structure.num_layers)
    with clock("statistics"):
        pool = collect_pool(
            model, texts.pool, quantities(), subset_options(texts, config),
            structure=structure, kinds=config.kinds, layers=layers, batch_size=config.batch_size, cache=run.cache,
        )  # fmt: skip
    with clock("dense"):
        objective = Objective(model, texts.search, structure=structure, dtype=run.dtype)
        held_out = Objective(model, texts.held_out, structure=structure, dtype=run.dtype)
    planner = CandidatePlanner(model, structure, pool, config)
    space = Space(pool.menu, kv_groups, "heads" in config.kinds, len(layers), config.fills)
    with clock("baselines"):
        baselines = fixed.evaluate(study, planner, objective, held_out)
    if config.sampler == "tpe":
        _enqueue_starts(study, [space.params(candidate) for candidate in fixed.starts(planner, space)])
    say(f"searching: {config.trials} trials on {len(objective)} blocks")
    known = {baseline.mask: list(baseline.losses) for baseline in baselines if baseline.losses}
    loop = AdaPrunerLoop(study, config, space, planner, objective, known)
    deadline = None if run.time_limit is None else begun + run.time_limit
    with clock("trials"):
        run_workers(loop, run.storage, run.workers, deadline, say)
    with clock("finalists"):
        outcome = pick_winner(study, space, planner, objective, held_out, baselines)
    return SearchResult(
        config=config,
        plan=outcome.plans[outcome.winner.name],
        winner=outcome.winner,
        candidate=outcome.candidate,
        corrections=outcome.corrections,
        plans=outcome.plans,
        finalists=outcome.finalists,
        baselines=tuple(baselines),
        trials=trial_records(study),
        importance=importance(study),
        dense={"search": float(objective.dense.mean()), "held out": float(held_out.dense.mean())},
        seconds=clock.seconds,
    )


def subset_options(texts: SearchTexts, config: AdaPrunerConfig) -> SubsetOptions:
    """Return options for the whole pool and smaller subsets; for a mix also subsets of one source, up to its size."""
    counts = tuple(sorted({*config.subset_counts, *map(len, texts.pool.values())}))
    names = tuple(dict.fromkeys(name for samples in texts.pool.values() for name in samples.source))
    sources = (ALL, *names) if len(names) > 1 else (ALL,)
    return SubsetOptions(counts, config.selectors, sources, tuple(texts.pool))


def quantities() -> frozenset[str]:
    """Return the quantities of the pool's statistics: all that a point of the metric family can read."""
    return frozenset(QUANTITIES)


def _enqueue_starts(study: optuna.Study, starts: list[dict[str, Any]]) -> None:
    """Give the sampler the trials that it learns from first; those that a killed search lost are given again."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.name != "FAIL"]
    given = [t.system_attrs.get("fixed_params", t.params) for t in trials if t.user_attrs.get(START)]
    for params in starts:
        if params not in given:
            study.enqueue_trial(params, user_attrs={ORIGIN: "start", START: True})
