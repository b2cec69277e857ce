"""Export: checkpoints rewritten for runtimes that do not open them unchanged."""

from pruneengine.export.outcome import Exported, Written
from pruneengine.export.run import FORMATS, export

__all__ = ["FORMATS", "Exported", "Written", "export"]
