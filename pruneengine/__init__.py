"""pruneengine: fast, dependable pruning of large language models.

``prune(model, samples, config)`` does the whole job in place. The stages of structured pruning, one by one::

    find_groups -> calibrate -> score -> allocate -> make_plan -> mask or compact -> perplexity -> save
"""

from typing import overload

from torch import nn

from pruneengine import ops, search
from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.statistics import Statistics
from pruneengine.checkpoint.load import load_model as load
from pruneengine.checkpoint.write import save
from pruneengine.common.aliases import accept_former_argument
from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.data.samples import Samples, Tokens
from pruneengine.data.windows import evaluation_windows, load_samples
from pruneengine.evaluation.perplexity import perplexity
from pruneengine.model import Group, Structure, find_groups
from pruneengine.model.experts import unfuse_experts
from pruneengine.recovery import RecoverConfig, RecoverReport, recover
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.texts import search_texts
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.texts import dsa_texts
from pruneengine.search.run import SearchRun
from pruneengine.search.texts import SearchTexts
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.plan import SparsePlan
from pruneengine.sparse.prune import SparseReport, sparsify
from pruneengine.structured.allocate import ALLOCATIONS, allocate
from pruneengine.structured.apply import compact, mask
from pruneengine.structured.compensate import COMPENSATIONS, Compensation, compensate
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.plan import Plan, make_plan
from pruneengine.structured.prune import PruneReport
from pruneengine.structured.prune import prune as prune_structures
from pruneengine.structured.scores.hywia import FUSIONS, HyWIA
from pruneengine.structured.scores.metrics import METRICS, metric
from pruneengine.structured.scores.score import Scores, score

__version__ = "0.1.0"

# The name of AdaPrunerConfig before there were two searches; it goes with the next release.
SearchConfig = AdaPrunerConfig

__all__ = [
    "ALLOCATIONS",
    "COMPENSATIONS",
    "FUSIONS",
    "METRICS",
    "AdaPrunerConfig",
    "Compensation",
    "DsaConfig",
    "Group",
    "HyWIA",
    "Plan",
    "PruneConfig",
    "PruneReport",
    "RecoverConfig",
    "RecoverReport",
    "Samples",
    "Scores",
    "SearchConfig",
    "SearchRun",
    "SearchTexts",
    "SparseConfig",
    "SparsePlan",
    "SparseReport",
    "Statistics",
    "Structure",
    "allocate",
    "calibrate",
    "compact",
    "compensate",
    "dsa_texts",
    "evaluation_windows",
    "find_groups",
    "load",
    "load_samples",
    "make_plan",
    "mask",
    "metric",
    "ops",
    "perplexity",
    "prune",
    "recover",
    "save",
    "score",
    "search",
    "search_texts",
    "sparsify",
    "unfuse_experts",
]


@overload
def prune(
    model: nn.Module,
    samples: Tokens | None = None,
    config: PruneConfig | None = None,
    *,
    statistics: Statistics | None = None,
    plan: None = None,
) -> PruneReport: ...


@overload
def prune(
    model: nn.Module,
    samples: Tokens | None,
    config: SparseConfig,
    *,
    statistics: Statistics | None = None,
    plan: SparsePlan | None = None,
) -> SparseReport: ...


@overload
def prune(
    model: nn.Module,
    samples: Tokens | None = None,
    *,
    config: SparseConfig,
    statistics: Statistics | None = None,
    plan: SparsePlan | None = None,
) -> SparseReport: ...


@overload
def prune(
    model: nn.Module,
    samples: Tokens | None = None,
    config: None = None,
    *,
    statistics: Statistics | None = None,
    plan: SparsePlan,
) -> SparseReport: ...


@accept_former_argument("batches", "samples")
def prune(
    model: nn.Module,
    samples: Tokens | None = None,
    config: PruneConfig | SparseConfig | None = None,
    *,
    statistics: Statistics | None = None,
    plan: SparsePlan | None = None,
) -> PruneReport | SparseReport:
    """Prune a model in place: whole units for a :class:`PruneConfig`, single weights for a :class:`SparseConfig`.

    Args:
        model: a transformers causal language model of a family that :func:`find_groups` knows, dense.
        samples: calibration token ids, int64 ``[N, L]``; not needed for methods of weights alone.
        config: the kind of pruning and its options; defaults to :class:`PruneConfig`, or with a plan to the plan's own.
        statistics: of this model, collected before; then no calibration is run for what they hold.
        plan: counts of a sparse prune, made before; then none are worked out (:func:`sparsify`).

    Raises:
        TypeError: a config or a plan of another type. A structured plan is carried out by :func:`compact`.
        ValueError: a sparse plan with a :class:`PruneConfig`; or before the model is touched, anything that cannot be
            done as asked.
    """
    if plan is not None and not isinstance(plan, SparsePlan):
        raise InputTypeError(
            f"plan must be a SparsePlan, got {type(plan).__name__}; compact(model, plan) carries out a structured plan"
        )
    if config is not None and not isinstance(config, PruneConfig | SparseConfig):
        raise InputTypeError(f"config must be a PruneConfig or a SparseConfig, got {type(config).__name__}")
    if isinstance(config, SparseConfig) or (config is None and plan is not None):
        return sparsify(model, samples, config, statistics=statistics, plan=plan)
    if plan is not None:
        raise InputError("a sparse plan goes with a SparseConfig or without a config, got a PruneConfig")
    return prune_structures(model, samples, config, statistics=statistics)
