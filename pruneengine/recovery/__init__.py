"""Recovery after pruning: LoRA adapters trained on a little text and merged into the weights."""

from pruneengine.recovery.config import RecoverConfig, read_recovery_recipe
from pruneengine.recovery.instructions import load_rows
from pruneengine.recovery.rows import TokenRows
from pruneengine.recovery.run import RecoverReport, check_recovery, check_work_folder, recover
from pruneengine.recovery.work import work_folder

__all__ = [
    "RecoverConfig",
    "RecoverReport",
    "TokenRows",
    "check_recovery",
    "check_work_folder",
    "load_rows",
    "read_recovery_recipe",
    "recover",
    "work_folder",
]
