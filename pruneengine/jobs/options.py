"""Options of the jobs that make a checkpoint: everything but the change of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneengine.checkpoint.load import load_model
from pruneengine.checkpoint.output_folder import OutputFolder, claim_output
from pruneengine.common.files import check_writable
from pruneengine.common.progress import Stopwatch
from pruneengine.jobs.checks import check_evaluation
from pruneengine.jobs.versions import versions
from pruneengine.recovery import RecoverConfig, work_folder
from pruneengine.search.run import SearchRun


@dataclass(frozen=True)
class CheckpointOptions:
    """Options of every job that makes a checkpoint: its source, its output folder and its evaluation text.

    Attributes:
        source: model folder, GGUF file or hub name.
        out: folder of the checkpoint; None for a dry run, where a job has one.
        overwrite: replace an existing checkpoint.
        dtype: of the weights in memory and on disk.
        compute_dtype: dtype in which a float32 model is searched, trained and measured; None for ``dtype``.
        device: of the model.
        eval_text: text spec of the perplexity before and after; None measures no perplexity.
        eval_seqlen: tokens per window of the evaluation text.
        eval_windows: number of windows; None for the counts in the spec, or 16 where it has none.
        proof: reopen the checkpoint in a fresh process and compare.
        trust_remote_code: run modelling code that comes with the model.
    """

    source: str
    out: Path | None
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
        """The evaluation text as a report names it; empty without a text."""
        if not self.eval_text:
            return {}
        return {"evaluation": {"text": self.eval_text, "tokens a window": self.eval_seqlen}}

    @property
    def kept(self) -> tuple[Path, ...]:
        """Files and folders that the job keeps beside its checkpoint."""
        return ()

    def claim(self, teacher: str | None = None) -> OutputFolder:
        """Return where the checkpoint may go, as :func:`pruneengine.checkpoint.output_folder.claim_output`.

        Args:
            teacher: a further model that the job reads.

        Raises:
            ValueError: a model that the job reads, or what the job keeps, lies in ``out``.
            OSError: ``out`` cannot be written, or may not be replaced.
        """
        assert self.out is not None, "a dry run saves nothing"
        # The name of a model on the hub is no path here.
        models = [name for name in (self.source, teacher) if name and Path(name).expanduser().exists()]
        return claim_output(self.out, self.overwrite, inputs=[*models, *self.kept])

    def load(self, clock: Stopwatch, say: Callable[[str], None]) -> tuple[nn.Module, Any]:
        """Return the model and its tokenizer; ``clock`` gains "load".

        Raises:
            ValueError, OSError: as :func:`pruneengine.checkpoint.load.load_model`.
        """
        say(f"loading {self.source}")
        with clock("load"):
            return load_model(self.source, self.dtype, self.device, self.trust_remote_code)

    def recipe(self, **more: Any) -> dict[str, Any]:
        """Return the part of a recipe that names the model: source, dtypes, then ``more``, and last the versions."""
        dtypes = {"dtype": self.dtype, "compute_dtype": self.compute_dtype}
        return {
            "source": self.source,
            **{name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items() if dtype is not None},
            **more,
            "versions": versions(),
        }


@dataclass(frozen=True)
class JobOptions(CheckpointOptions):
    """Options of a prune, structured or sparse.

    Attributes:
        out: None for a dry run.
        speed: measure tokens per second, dense and pruned in turn (keeps a dense copy in memory).
        statistics: file to reuse statistics from, or to keep them in.
        prompt: text that the reloaded checkpoint continues in a fresh process.
        recover: training of the pruned model before it is saved; None for no training.
    """

    speed: bool = False
    statistics: Path | None = None
    prompt: str | None = None
    recover: RecoverConfig | None = None

    @property
    def kept(self) -> tuple[Path, ...]:
        """The file of the statistics, if there is one."""
        return () if self.statistics is None else (self.statistics,)


@dataclass(frozen=True)
class SearchOptions(CheckpointOptions):
    """Options of a search, by either method.

    Attributes:
        study, storage: of the Optuna study; None for "adapruner" in a journal file in the folder ``<out>-search``,
            where the pool's statistics are kept too.
        workers, time_limit: as of :class:`SearchRun`.
        eval_text, eval_seqlen, eval_windows: the text of the report, which the search never sees; None for none.
        recover: training of the pruned model before it is saved; None for no training.
    """

    out: Path
    eval_text: str | None = None
    eval_seqlen: int = 512
    eval_windows: int | None = 64
    study: str = "adapruner"
    storage: str | None = None
    workers: int = 1
    time_limit: float | None = None
    recover: RecoverConfig | None = None

    @property
    def kept(self) -> tuple[Path, ...]:
        """The folder of the search, and the file of a journal or of an SQLite database."""
        prefix = next((p for p in ("journal:", "sqlite:///") if (self.storage or "").startswith(p)), None)
        storage = () if prefix is None or self.storage is None else (Path(self.storage.removeprefix(prefix)),)
        return (self.folder, *storage)

    @property
    def folder(self) -> Path:
        """The folder from which a stopped search goes on."""
        return self.out.with_name(f"{self.out.name}-search")

    def check(self) -> SearchRun:
        """Return how the search runs, once the options are checked.

        Raises:
            ValueError, OSError: as :meth:`claim` and :func:`check_evaluation`, or a run that cannot be.
        """
        self.claim(self.recover.teacher if self.recover else None)
        check_evaluation(self.eval_text, self.eval_seqlen, self.eval_windows)
        check_writable(self.folder)
        storage = self.storage or f"journal:{self.folder / 'study.journal'}"
        return SearchRun(self.study, storage, self.folder, self.workers, self.time_limit)


@dataclass(frozen=True)
class RecoverOptions(CheckpointOptions):
    """Options of a recovery.

    The source's plan, recipe and report are carried along. Checkpoints of the training lie beside ``out`` until it is
    there.
    """

    out: Path

    @property
    def work(self) -> Path:
        """The folder of the training's checkpoints."""
        return work_folder(self.out)
