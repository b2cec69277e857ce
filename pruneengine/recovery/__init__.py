"""Recovery after pruning: LoRA adapters trained on a little text and merged into the weights."""

from pruneengine.recovery.config import RecoverConfig, read_recovery_recipe
from pruneengine.recovery.engine import RecoverReport, check_recovery, check_work_folder, recover
from pruneengine.recovery.instructions import load_rows
from pruneengine.recovery.rows import TokenRows
from pruneengine.recovery.work import work_folder
from pruneengine.report.values.recovery import overlap_warnings, summarise, training_warnings

__all__ = [
    "RecoverConfig",
    "RecoverReport",
    "TokenRows",
    "check_recovery",
    "check_work_folder",
    "load_rows",
    "overlap_warnings",
    "read_recovery_recipe",
    "recover",
    "summarise",
    "training_warnings",
    "work_folder",
]
