"""Storage, workers and time limit of a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.common.errors import InputError
from pruneengine.model import model_fingerprint
from pruneengine.search.study import MEMORY, check_storage
from pruneengine.search.texts import SearchTexts


@dataclass(frozen=True)
class SearchRun:
    """Storage, workers, time limit and dtype of a search; of these only the last two change its result.

    Attributes:
        study: name of the study in the storage.
        storage: as :func:`pruneengine.search.study.open_study` takes it.
        cache: folder of the pool's statistics; None keeps them in memory only.
        workers: number of processes on the study; each has its share of the threads.
        time_limit: seconds after which no trial begins; None for no limit.
        dtype: dtype in which the objective computes; None for the model's own.
    """

    study: str = "adapruner"
    storage: str = MEMORY
    cache: Path | None = None
    workers: int = 1
    time_limit: float | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"workers must be at least 1, got {self.workers}")
        check_storage(self.storage)
        if self.workers > 1 and self.storage == MEMORY:
            raise InputError(f"{self.workers} workers need a storage that they can share, got {MEMORY!r}")
        if self.time_limit is not None and self.time_limit <= 0:
            raise InputError(f"time limit must be positive, got {self.time_limit}")

    def identity(self, model: nn.Module, texts: SearchTexts, pool: str) -> dict[str, Any]:
        """Return what two runs of one study must share besides their config: model, texts and dtype.

        Args:
            model: the dense model.
            texts: texts of the search.
            pool: key of the calibration samples.
        """
        return {
            "model": model_fingerprint(model),
            pool: {str(length): samples.hash[:16] for length, samples in texts.pool.items()},
            "search text": texts.search.hash[:16],
            "held-out text": texts.held_out.hash[:16],
            "objective's dtype": str(self.dtype or model.dtype),
        }
