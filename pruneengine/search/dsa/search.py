"""Search for an allocation function, after DSA (Li, Dong et al., NeurIPS 2024).

Statistics of the dense model, moments of its scores and a byte per weight are collected once. A trial draws a function
and scores all layers in a fraction of a millisecond. Its allocation runs on a few hundred tokens, or on all of them
where it is not clearly worse than the best so far. The best allocations are then pruned in full, behind pruned layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from pruneengine.calibration.calibrate import calibrate
from pruneengine.common.errors import InputError
from pruneengine.common.progress import Stopwatch
from pruneengine.model import find_groups
from pruneengine.model.experts import unfuse_experts
from pruneengine.search.dsa.allocator import Allocator, TriedAllocation
from pruneengine.search.dsa.codes import quantile_masks
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.finals import (
    Correlation,
    Finalist,
    FinalistResult,
    FullPruneJudge,
    correlate,
    line_up,
    ranked,
)
from pruneengine.search.dsa.history import TrialHistory
from pruneengine.search.dsa.objective import SparseObjective
from pruneengine.search.dsa.result import NONE_COMPLETE, DsaResult, dsa_trials
from pruneengine.search.dsa.trials import DsaLoop
from pruneengine.search.early_stop import mean
from pruneengine.search.run import SearchRun
from pruneengine.search.study import counted, open_study
from pruneengine.search.texts import SearchTexts
from pruneengine.search.workers import run_workers
from pruneengine.sparse.functions.function import PUBLISHED
from pruneengine.sparse.matrices import check_columns, find_matrices

if TYPE_CHECKING:
    import optuna

# Fixed allocations, some by a function: candidates are compared with them, and early stopping knows them at the start.
FIXED_ALLOCATIONS = {"uniform": None, "owl": None, "dsa": PUBLISHED}
RIVAL = "rival: "


def search_dsa(
    model: nn.Module,
    texts: SearchTexts,
    config: DsaConfig,
    run: SearchRun | None = None,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> DsaResult:
    """Search for the best allocation function; the model is left as it was.

    For the finals it is pruned in place, again and again, while its dense weights are kept in main memory. Afterwards
    it has every bit of them back, also after an error or Ctrl-C.

    A search that was stopped, or killed, goes on where it was when it is called again with the same study and storage.

    Args:
        model: the dense model; fused experts get linears of their own, as by
            :func:`pruneengine.model.experts.unfuse_experts`.
        texts: tokens of the calibration samples (of one length), the search and the held-out windows.
        config: the target and the search.
        run: storage of the study and number of workers; by default one worker, in memory.
        say: told of every stage as it begins.

    Raises:
        ValueError: a pattern, an ``ignore`` or texts that do not fit, or a study about something else, before the first
            forward pass; in the end, if no allocation at all could be pruned.
        ConnectionError: the storage does not answer.
    """
    run = run or SearchRun("dsa")
    clock, begun = Stopwatch(), time.monotonic()
    structure = find_groups(unfuse_experts(model))
    matrices = find_matrices(model, structure, config.ignore)
    pattern = config.parsed_pattern
    if pattern.m is not None:
        check_columns(matrices, pattern.m)
    if len(texts.pool) != 1:
        raise InputError(f"calibration samples of one length expected, got {sorted(texts.pool)}")
    (calibration,) = texts.pool.values()
    identity = {"method": "dsa"} | run.identity(model, texts, "calibration") | config.identity
    study = open_study(run.study, run.storage, identity)
    say("collecting statistics of the dense model")
    with clock("statistics"):
        statistics = calibrate(
            model, calibration, ("squares",), structure=structure, kinds=(), batch_size=config.batch_size
        )
    with clock("scores"):
        allocator = Allocator(model, matrices, statistics, config.sparse_config, structure.num_layers)
    with clock("codes"):
        codes = quantile_masks(model, matrices, statistics, config.pruner, pattern)
    with clock("dense"):
        objective = SparseObjective(
            model, structure, matrices, codes, texts.search, segment=config.segment, dtype=run.dtype
        )
    say("the fixed allocations")
    with clock("rivals"):
        fixed = {name: allocator.named(model, name, statistics) for name in FIXED_ALLOCATIONS}
        rivals = {name: _losses(study, name, allocated, objective) for name, allocated in fixed.items()}
    loop = DsaLoop(study, config, allocator, objective, {fixed[name].levels: rivals[name] for name in fixed})
    deadline = None if run.time_limit is None else begun + run.time_limit
    with clock("trials"):
        run_workers(loop, run.storage, run.workers, deadline, say)
    history = TrialHistory().update(study)
    ended = "trials" if counted(study) >= config.trials else "plateau" if loop.over else "time"
    say("pruning the best allocations in full")
    with clock("finalists"):
        entrants = [
            Finalist(name, fixed[name], mean(rivals[name]), function) for name, function in FIXED_ALLOCATIONS.items()
        ]
        lineup = line_up(entrants, history, allocator, objective, config)
        segments, spent_within = len(objective), loop.clock.seconds
        # A byte per weight, which a prune may need itself.
        del codes, objective, loop
        judge = FullPruneJudge(model, structure.model_type, matrices, texts, config, study, run.dtype)
        judged, correlation = _finals(judge, *lineup, config)
    if not judged:
        raise InputError(f"no allocation could be pruned in full: {next(iter(judge.failed.values()))}")
    seconds = clock.seconds | {f"trials: {stage}": spent for stage, spent in spent_within.items()}
    allocations = {result.entrant.name: result.entrant.allocated.by_layer(matrices) for result in judged}
    finalists = ranked(judged, config)
    return DsaResult(
        config=config,
        winner=finalists[0],
        finalists=tuple(finalists),
        correlation=correlation,
        trials=dsa_trials(study),
        dense=judge.dense,
        segments=segments,
        ended=ended,
        plateau=history.best.number if ended == "plateau" and history.best else None,
        allocations=allocations,
        warnings=_warnings(judge, correlation, history),
        seconds=seconds,
    )


def _finals(
    judge: FullPruneJudge,
    finalists: Sequence[Finalist],
    spread: Sequence[Finalist],
    reserve: Sequence[Finalist],
    config: DsaConfig,
) -> tuple[list[FinalistResult], Correlation]:
    """Prune in full all that may win; return them, and how well the fast loss had ordered them."""
    judged = judge.judge(finalists, "finalists")
    if not config.correlate:
        return judged, Correlation(None, ())
    # These are pruned in full like any finalist, and so may win like one.
    judged += judge.judge(spread, "correlation")
    correlation = correlate(judged)
    if not correlation.trusted:
        names = {result.entrant.name for result in judged}
        judged += judge.judge([finalist for finalist in reserve if finalist.name not in names], "more finalists")
    return judged, correlation


def _warnings(judge: FullPruneJudge, correlation: Correlation, history: TrialHistory) -> tuple[str, ...]:
    warnings = [] if history.best else [NONE_COMPLETE]
    if not correlation.trusted:
        warnings.append(correlation.in_words())
    failed = (f"{name} could not be pruned in full and is left out: {why}" for name, why in judge.failed.items())
    return (*warnings, *failed)


def _losses(
    study: optuna.Study, name: str, allocated: TriedAllocation, objective: SparseObjective
) -> tuple[float, ...]:
    known = study.user_attrs.get(RIVAL + name)
    if known is None:
        known = list(objective.evaluate(allocated.levels).losses)
        study.set_user_attr(RIVAL + name, known)
    return tuple(known)
