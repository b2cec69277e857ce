"""Checkpoints: models read from disk, written to it, and proved to reload."""

from pruneengine.checkpoint.write import SavedCheckpoint, save

__all__ = ["SavedCheckpoint", "save"]
