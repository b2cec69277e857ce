"""Finals of a search over allocation functions: the best and the fixed allocations, pruned in full and compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruneengine.common.progress import track
from pruneengine.data.samples import Samples
from pruneengine.evaluation.perplexity import perplexity
from pruneengine.model.masking import keep_weights, restored_weights
from pruneengine.search.dsa.allocator import Allocator, TriedAllocation
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.history import KnownTrial, TrialHistory
from pruneengine.search.dsa.objective import SparseObjective
from pruneengine.search.texts import SearchTexts
from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.matrices import Matrix
from pruneengine.sparse.plan import SparsePlan, make_sparse_plan
from pruneengine.sparse.prune import sparsify

if TYPE_CHECKING:
    import optuna

# Key in the study, before a digest of the plan.
FULL = "pruned in full: "
# Below this, the fast fitness orders allocations too differently from the real one to be trusted alone.
TRUSTED = 0.8


@dataclass(frozen=True)
class Finalist:
    """An allocation that is to be pruned in full.

    Attributes:
        name: "trial 17", or a fixed allocation's name.
        allocated: the allocation.
        fast: fast loss above the dense model's on all search windows, nats.
        function: function that gives the allocation; None for a fixed one that is no function.
    """

    name: str
    allocated: TriedAllocation
    fast: float
    function: Function | None = None


@dataclass(frozen=True)
class FinalistResult:
    """An allocation that was pruned in full.

    Attributes:
        entrant: the allocation before it was pruned.
        plan: plan of the prune.
        full, held_out: loss above the dense model's on the search and the held-out windows, nats.
    """

    entrant: Finalist
    plan: SparsePlan
    full: float
    held_out: float


def line_up(
    fixed: Sequence[Finalist],
    history: TrialHistory,
    allocator: Allocator,
    objective: SparseObjective,
    config: DsaConfig,
) -> tuple[list[Finalist], list[Finalist], list[Finalist]]:
    """Return the entrants of the finals, chosen before anything is pruned.

    Fast losses that are not known yet are computed here: they are the objective's last use.

    Args:
        fixed: entrants whatever the trials gave.
        history: of all trials.
        allocator: of the search.
        objective: of the search.
        config: the numbers of entrants.

    Returns:
        ``(finalists, spread, reserve)``: the fixed allocations and the best by fast losses; others over the range of
        fast losses, for their correlation with full ones; the best behind the finalists, for a fast loss that is no
        guide.
    """

    def entrant(known: KnownTrial, fast: float) -> Finalist:
        return Finalist(f"trial {known.number}", allocator.of_function(known.function), fast, known.function)

    others = list(history.known.values())
    complete = sorted((known for known in others if known.complete), key=lambda known: (known.estimate, known.number))
    best = [entrant(known, known.estimate) for known in complete[: 2 * config.finalists]]
    finalists, reserve = [*fixed, *best[: config.finalists]], best[config.finalists :]
    taken = [known.estimate for known in complete[: config.finalists]]
    chosen = spread_over(max(0, config.correlate - len(finalists)), [known.estimate for known in others], taken)
    # Of an allocation that was stopped, the fast loss is known on a few segments only.
    spread = [
        entrant(others[place], objective.evaluate(others[place].levels).mean) for place in track(chosen, "fast losses")
    ]
    return finalists, [finalist for finalist in spread if math.isfinite(finalist.fast)], reserve


def spread_over(count: int, values: Sequence[float], taken: Sequence[float]) -> list[int]:
    """Return the positions of up to ``count`` values, evenly over the ranks of those that are not taken."""
    ranked = [place for place in sorted(range(len(values)), key=lambda p: values[p]) if values[place] not in taken]
    if count >= len(ranked):
        return ranked
    # The last of the ranks would be the one whose loss tells least: of a model that is destroyed.
    return [ranked[int((index + 0.5) * len(ranked) / count)] for index in range(count)]


class FullPruneJudge:
    """Judge of allocations: it prunes the model in full and measures it, once per plan and study.

    The model is pruned in place, and gets its weights back every time. From the first prune on, the dense weights are
    kept a second time in main memory: a second model might not fit on the first one's device.

    Attributes:
        dense: token loss of the dense model on the "search" and the "held out" windows, nats.
        failed: reason why an entrant was left out, by its name.
    """

    def __init__(
        self,
        model: nn.Module,
        model_type: str,
        matrices: Sequence[Matrix],
        texts: SearchTexts,
        config: DsaConfig,
        study: optuna.Study,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model, self._model_type, self._matrices = model, model_type, matrices
        self._texts, self._config, self._study, self._dtype = texts, config, study, dtype
        self.dense = self._losses(model)
        self.failed: dict[str, str] = {}

    def judge(self, entrants: Sequence[Finalist], what: str) -> list[FinalistResult]:
        """Prune the model by each allocation with the config's pruner and mode, and measure it.

        Afterwards the model is as it was, also after an error or Ctrl-C. An allocation is left out if it ruins the
        model: activations or losses are not finite.
        """
        judged = []
        for entrant in track(entrants, what):
            try:
                judged.append(self._judged(entrant))
            except (ValueError, FloatingPointError) as error:
                self.failed[entrant.name] = str(error)
        return judged

    def _judged(self, entrant: Finalist) -> FinalistResult:
        config = self._config.sparse_config
        # A config without a sparsity takes its pattern's.
        assert config.sparsity is not None
        plan = make_sparse_plan(
            self._model_type, self._matrices, entrant.allocated.sparsities, config.sparsity,
            method=config.method, pattern=self._config.parsed_pattern, allocation=entrant.allocated.words,
        )  # fmt: skip
        key = FULL + _digest(plan, self._config.mode, self._texts)
        above_dense = self._study.user_attrs.get(key)
        if above_dense is None:
            (calibration,) = self._texts.pool.values()
            with restored_weights(self._model, self._dense_weights):
                sparsify(self._model, calibration, config, plan=plan)
                losses = self._losses(self._model)
            above_dense = {text: losses[text] - self.dense[text] for text in losses}
            self._study.set_user_attr(key, above_dense)
        return FinalistResult(entrant, plan, above_dense["search"], above_dense["held out"])

    @cached_property
    def _dense_weights(self) -> dict[str, Tensor]:
        return keep_weights(self._model, [m.name for m in self._matrices])

    def _losses(self, model: nn.Module) -> dict[str, float]:
        named: dict[str, Samples] = {"search": self._texts.search, "held out": self._texts.held_out}
        return {name: perplexity(model, windows, dtype=self._dtype).nll for name, windows in named.items()}


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of the fast and the full losses of allocations.

    Attributes:
        rho: Spearman's rank correlation; None where it was left out or is not defined.
        points: ``(name, fast, full)`` of its allocations, losses in nats.
    """

    rho: float | None
    points: tuple[tuple[str, float, float], ...]

    @property
    def trusted(self) -> bool:
        """True where the fast loss can be relied on, or no correlation is known."""
        return self.rho is None or self.rho >= TRUSTED

    def in_words(self) -> str:
        """Return a sentence for a report."""
        if self.rho is None:
            return "The rank correlation between fast and full loss was not measured."
        text = (
            f"Over {len(self.points)} allocations, the fast loss and that of a full prune have a rank correlation of "
            f"{self.rho:.2f} (Spearman)"
        )
        if self.trusted:
            return f"{text}."
        return f"{text}; below {TRUSTED:g} the fast loss is a rough guide, so up to twice as many were pruned in full."


def correlate(judged: Sequence[FinalistResult]) -> Correlation:
    """Return Spearman's rank correlation of fast and full losses on the search windows."""
    from scipy.stats import spearmanr

    points = tuple((result.entrant.name, result.entrant.fast, result.full) for result in judged)
    if len(points) < 3 or any(len({point[place] for point in points}) < 2 for place in (1, 2)):
        return Correlation(None, points)
    return Correlation(float(spearmanr([p[1] for p in points], [p[2] for p in points]).statistic), points)


def ranked(judged: Sequence[FinalistResult], config: DsaConfig) -> list[FinalistResult]:
    """Return the results by their mean loss over all windows, best first.

    The held-out windows alone are few, and the search windows have chosen by fast losses only. Of equal results (one
    plan under several names) the first stays first, and so uniform before a function.
    """
    weights = config.search_windows, config.held_out_windows
    return sorted(judged, key=lambda result: result.full * weights[0] + result.held_out * weights[1])


def _digest(plan: SparsePlan, mode: str, texts: SearchTexts) -> str:
    pool = {str(length): samples.hash for length, samples in texts.pool.items()}
    content = json.dumps([plan.removed, plan.pattern, plan.method, mode, pool], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]
