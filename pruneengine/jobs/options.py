"""What every job that makes a checkpoint is told, apart from what it does to the model."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.checkpoint.load import load_model
from pruneengine.checkpoint.write import check_output
from pruneengine.common.files import check_writable
from pruneengine.common.progress import Stopwatch
from pruneengine.data.windows import check_spec
from pruneengine.recovery import RecoverConfig
from pruneengine.search.run import SearchRun


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


def check_out(out: Path, overwrite: bool, source: str) -> Path:
    """The absolute path of ``out`` if a checkpoint made of ``source`` can be written there.

    Raises:
        ValueError: it is the model itself.
        OSError: as :func:`pruneengine.checkpoint.write.check_output`.
    """
    path = check_output(out, overwrite)
    if path == Path(source).expanduser().resolve():
        raise ValueError(f"output folder {path} is the model itself; choose another")
    return path


def refuse_recovery(recover: Any) -> None:
    """ValueError where a sparse model is to be trained."""
    if recover is not None:
        raise ValueError(
            "recovery trains LoRA, and merging it would fill the zeros of a sparse model: without --recover"
        )


def check_evaluation(text: str | None, seqlen: int, windows: int | None, default: int = 16) -> int | None:
    """How many windows of an evaluation text to take, where there is one: as :func:`check_spec`.

    Raises:
        ValueError: a text that does not exist, or windows of less than two tokens.
    """
    if not text:
        return windows
    settled = check_spec(text, windows, default=default)
    if seqlen < 2:
        raise ValueError(f"evaluation windows of {seqlen} token(s): expected at least 2")
    return settled


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("pruneengine", "torch", "transformers", "peft", "optuna", "lm_eval", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class SearchOptions(CheckpointOptions):
    """Everything about a search job but the search itself.

    Attributes:
        study, storage: of the Optuna study; None for "adapruner" in a journal file in the folder ``<out>-search``,
            where the pool's statistics are kept too.
        workers, time_limit: as of :class:`SearchRun`.
        eval_text, eval_seqlen, eval_windows: the text of the report, which the search never sees; None for none.
        recover: train the pruned model before it is saved; None for not.
    """

    eval_text: str | None = None
    eval_seqlen: int = 512
    eval_windows: int | None = 64
    study: str = "adapruner"
    storage: str | None = None
    workers: int = 1
    time_limit: float | None = None
    recover: RecoverConfig | None = None

    @property
    def folder(self) -> Path:
        """Where the search keeps what it can go on from."""
        return self.out.with_name(f"{self.out.name}-search")

    def check(self) -> SearchRun:
        """How the search runs, once all that the options say was found possible.

        Raises:
            ValueError, OSError: as :func:`check_out` and :func:`check_evaluation`, or a run that cannot be.
        """
        check_out(self.out, self.overwrite, self.source)
        check_evaluation(self.eval_text, self.eval_seqlen, self.eval_windows)
        check_writable(self.folder)
        storage = self.storage or f"journal:{self.folder / 'study.journal'}"
        return SearchRun(self.study, storage, self.folder, self.workers, self.time_limit)


def with_search(clock: Stopwatch, seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of a job and, named as such, those of its search."""
    return clock.seconds | {f"search: {stage}": spent for stage, spent in seconds.items()}


@dataclass(frozen=True)
class JobOptions(CheckpointOptions):
    """Everything about a job but the pruning itself.

    Attributes:
        out: None for a dry run.
        speed: measure tokens per second, dense and pruned in turn (keeps a dense copy in memory).
        statistics: file to reuse, or to leave the statistics in.
        prompt: continued by the reloaded checkpoint in a fresh process.
        recover: train the pruned model before it is saved; None for not.
    """

    out: Path | None
    speed: bool = False
    statistics: Path | None = None
    prompt: str | None = None
    recover: RecoverConfig | None = None
