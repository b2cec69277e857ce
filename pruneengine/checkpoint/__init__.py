"""Checkpoints: models read from disk, written to disk, and proved to reload."""

from pruneengine.checkpoint.write import SavedCheckpoint, save

__all__ = ["SavedCheckpoint", "save"]
