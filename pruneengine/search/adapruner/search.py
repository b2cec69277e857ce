"""The search: calibration data, metric and allocation chosen jointly, after AdaPruner (Kong et al., AAAI 2025).

Statistics of the whole calibration pool are collected once. A trial combines the rows of its samples, scores,
allocates, plans and masks in milliseconds, and is judged by the masked model's loss on fixed text, block by block. The
best trials meet again on text that the search never saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from pruneengine.calibration.statistics import QUANTITIES
from pruneengine.common.progress import Stopwatch
from pruneengine.model import find_groups, model_fingerprint
from pruneengine.model.experts import unfuse_experts
from pruneengine.search.adapruner import baselines as fixed
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.decide import CandidatePlanner
from pruneengine.search.adapruner.finals import pick_winner
from pruneengine.search.adapruner.objective import Objective
from pruneengine.search.adapruner.pool import SubsetOptions, collect_pool
from pruneengine.search.adapruner.result import SearchResult
from pruneengine.search.adapruner.space.kv_groups import legal_heads
from pruneengine.search.adapruner.space.space import Space
from pruneengine.search.adapruner.space.subsets import ALL
from pruneengine.search.adapruner.trials import TrialLoop
from pruneengine.search.records import importance, trial_records
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
        run: where the study is kept, and how many work on it; in memory, one, by default.
        say: told what is being done.

    Raises:
        ValueError: a target or space without a legal plan, texts that do not fit, a study about something else; all
            before a forward pass is spent on it.
        ConnectionError: the storage does not answer.
    """
    config, run = config or AdaPrunerConfig(), run or SearchRun()
    clock = Stopwatch()
    begun = time.monotonic()
    structure = find_groups(unfuse_experts(model))
    check_reachable(structure, config.prune_config)
    kv_groups = tuple(legal_heads(structure, config.ratio, config.structure)) if config.shape == "uniform" else ()
    study = open_study(run.study, run.storage, _identity(model, texts, config, run))
    say("collecting statistics of the calibration pool")
    layers = config.layer_range(structure.num_layers)
    with clock("statistics"):
        pool = collect_pool(
            model, texts.pool, quantities(), subset_options(texts, config),
            structure=structure, kinds=config.structure, layers=layers, batch_size=config.batch_size, cache=run.cache,
        )  # fmt: skip
    with clock("dense"):
        objective = Objective(model, texts.search, structure=structure, dtype=run.dtype)
        held_out = Objective(model, texts.held_out, structure=structure, dtype=run.dtype)
    decider = CandidatePlanner(model, structure, pool, config)
    space = Space(pool.menu, kv_groups, "heads" in config.structure, len(layers), config.fills)
    with clock("baselines"):
        baselines = fixed.evaluate(study, decider, objective, held_out)
    if config.sampler == "tpe":
        _enqueue_starts(study, [space.params(candidate) for candidate in fixed.starts(decider, space)])
    say(f"searching: {config.trials} trials on {len(objective)} blocks")
    loop = TrialLoop(study, space, decider, objective, config, {b.mask: list(b.losses) for b in baselines if b.losses})
    deadline = None if run.time_limit is None else begun + run.time_limit
    with clock("trials"):
        run_workers(loop, run.storage, run.workers, deadline, say)
    with clock("finalists"):
        outcome = pick_winner(study, space, decider, objective, held_out, baselines)
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


def _enqueue_starts(study: optuna.Study, starts: list[dict[str, Any]]) -> None:
    """What the sampler learns from first; what a killed search lost of it is given again."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.name != "FAIL"]
    given = [t.system_attrs.get("fixed_params", t.params) for t in trials if t.user_attrs.get(START)]
    for params in starts:
        if params not in given:
            study.enqueue_trial(params, user_attrs={ORIGIN: "start", START: True})


def _identity(model: nn.Module, texts: SearchTexts, config: AdaPrunerConfig, run: SearchRun) -> dict[str, Any]:
    return {
        "model": model_fingerprint(model),
        "pool": {str(length): samples.hash[:16] for length, samples in texts.pool.items()},
        "search text": texts.search.hash[:16],
        "held-out text": texts.held_out.hash[:16],
        "objective's dtype": str(run.dtype or model.dtype),
        **config.identity,
    }


def subset_options(texts: SearchTexts, config: AdaPrunerConfig) -> SubsetOptions:
    """All of the pool, and smaller subsets of it; of a mix also those of one source, as large as the source allows."""
    counts = tuple(sorted({*config.counts, *map(len, texts.pool.values())}))
    names = tuple(dict.fromkeys(name for samples in texts.pool.values() for name in samples.source))
    sources = (ALL, *names) if len(names) > 1 else (ALL,)
    return SubsetOptions(counts, config.selectors, sources, tuple(texts.pool))


def quantities() -> frozenset[str]:
    """What the pool's statistics must hold: all that a point of the family can read."""
    return frozenset(QUANTITIES)
