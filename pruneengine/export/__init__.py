"""Export: a checkpoint rewritten for runtimes that do not open it as it is."""

from pruneengine.export.outcome import Exported, Written
from pruneengine.export.run import FORMATS, export

__all__ = ["FORMATS", "Exported", "Written", "export"]
