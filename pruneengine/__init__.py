"""pruneengine: fast, dependable pruning of large language models.

``prune(model, batches, config)`` does the whole job in place. The stages, one by one::

    find_groups -> calibrate -> score -> allocate -> make_plan -> mask or compact -> perplexity -> save
"""

from pruneengine import ops, search
from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.statistics import Statistics
from pruneengine.checkpoint.load import load_model as load
from pruneengine.checkpoint.write import save
from pruneengine.data.windows import Samples, evaluation_windows, load_samples
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
from pruneengine.structured.prune import PruneReport, prune
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
