"""pruneengine: fast, dependable pruning of large language models.

``prune(model, batches, config)`` does the whole job in place. The stages, one by one::

    find_groups -> calibrate -> score -> allocate -> make_plan -> mask or compact -> perplexity -> save
"""

from pruneengine import ops, search
from pruneengine.allocate import ALLOCATIONS, allocate
from pruneengine.apply import compact, mask
from pruneengine.calibrate import calibrate
from pruneengine.checkpoint import save
from pruneengine.compensate import COMPENSATIONS, Compensation, compensate
from pruneengine.config import PruneConfig
from pruneengine.data import Samples, evaluation_windows, load_samples
from pruneengine.engine import PruneReport, prune
from pruneengine.evaluate import perplexity
from pruneengine.experts import unfuse_experts
from pruneengine.fusion import FUSIONS, HyWIA
from pruneengine.loading import load_model as load
from pruneengine.metrics import METRICS, metric
from pruneengine.plan import Plan, make_plan
from pruneengine.recovery import RecoverConfig, RecoverReport, recover
from pruneengine.score import Scores, score
from pruneengine.search.adapruner import SearchRun
from pruneengine.search.config import SearchConfig
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.texts import SearchTexts, dsa_texts, search_texts
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.engine import SparseReport, sparsify
from pruneengine.sparse.plan import SparsePlan
from pruneengine.statistics import Statistics
from pruneengine.structure import Group, Structure, find_groups

__version__ = "0.1.0"

__all__ = [
    "ALLOCATIONS",
    "COMPENSATIONS",
    "FUSIONS",
    "METRICS",
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
