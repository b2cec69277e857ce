"""What every job that makes a checkpoint is told, apart from what it does to the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.checkpoint.load import load_model
from pruneengine.common.progress import Stopwatch
from pruneengine.jobs.versions import versions


@dataclass(frozen=True)
class CheckpointOptions:
    """From which model, to which folder, and measured on what.

    Attributes:
        source: model folder, GGUF file or hub name.
        out: the checkpoint's folder.
        dtype: of the weights in memory and on disk.
        compute_dtype: what a float32 model computes in while it is searched, trained and measured; None for ``dtype``.
        eval_text: text spec of the perplexity before and after, None for none.
        eval_seqlen: tokens a window of that text.
        eval_windows: how many; None for the counts in the spec, or 16 where it has none.
        proof: reopen the checkpoint in a fresh process and compare.
    """

    source: str
    out: Path
    overwrite: bool = False
    dtype: torch.dtype = torch.float32
    compute_dtype: torch.dtype | None = None
    device: str = "cpu"
    eval_text: str | None = "builtin-eval"
    eval_seqlen: int = 256
    eval_windows: int | None = None
    proof: bool = True
    trust_remote_code: bool = False

    @property
    def evaluation(self) -> dict[str, Any]:
        """What a report says of the text that perplexities are measured on; empty where there is none."""
        if not self.eval_text:
            return {}
        return {"evaluation": {"text": self.eval_text, "tokens a window": self.eval_seqlen}}

    def load(self, clock: Stopwatch, say: Callable[[str], None]) -> tuple[nn.Module, Any]:
        """The model and its tokenizer; ``clock`` gains "load".

        Raises:
            ValueError, OSError: as :func:`pruneengine.checkpoint.load.load_model`.
        """
        say(f"loading {self.source}")
        with clock("load"):
            return load_model(self.source, self.dtype, self.device, self.trust_remote_code)

    def recipe(self, **more: Any) -> dict[str, Any]:
        """What a recipe says of the model: source, dtype, then ``more``, and last the versions."""
        dtypes = {"dtype": self.dtype, "compute_dtype": self.compute_dtype}
        return {
            "source": self.source,
            **{name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items() if dtype is not None},
            **more,
            "versions": versions(),
        }
