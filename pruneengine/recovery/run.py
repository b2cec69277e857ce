"""recover(): from a pruned model to one that has learnt to do with what is left."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.checkpoint.load import load_model, load_skeleton
from pruneengine.common.optional_imports import require_extra
from pruneengine.common.progress import Stopwatch
from pruneengine.data.windows import Samples
from pruneengine.model import find_groups, model_fingerprint
from pruneengine.model.experts import unfuse_experts
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.instructions import as_rows, load_rows
from pruneengine.recovery.lora import attach, detach, find_targets
from pruneengine.recovery.objective import Objective
from pruneengine.recovery.rows import TokenRows
from pruneengine.recovery.work import check_room, check_work, list_checkpoints, open_work, step_of

# Names in the work folder's run file.
MODEL, TEACHER = "model", "teacher model"


@dataclass(frozen=True)
class RecoverReport:
    """What was done.

    Attributes:
        config: how.
        steps: optimizer steps that were taken; ``best_step`` of them are in the weights (0: none was better than none).
        losses: training loss by step, nats a token (with a teacher: the mixed loss).
        validation: loss of the validation rows by step, 0 before training; empty without validation.
        trained: parameters of the adapters.
        rows, validation_rows, tokens: rows trained on and kept, and tokens predicted in one pass over the former.
        data_hash: of all rows.
        resumed_from: the step that a stopped run went on from, or None.
        stopped: why the training ended before its last step, or None: a loss or gradient that was not finite.
        text: what was read, by source.
        dtype: what the training computed in, e.g. ``"float32"``.
        seconds: by stage.
    """

    config: RecoverConfig
    steps: int
    best_step: int
    losses: dict[int, float]
    validation: dict[int, float]
    trained: int
    rows: int
    validation_rows: int
    tokens: int
    data_hash: str
    resumed_from: int | None = None
    stopped: str | None = None
    text: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        spent = ", ".join(f"{stage} {s:.2f} s" for stage, s in self.seconds.items())
        checked = ""
        if self.validation:
            before, after = self.validation[0], self.validation[self.best_step]
            checked = f", validation loss {before:.4f} -> {after:.4f} at step {self.best_step}"
        if self.stopped:
            checked += f", stopped early: {self.stopped}"
        return f"{self.steps} steps over {self.rows} rows, {self.trained:,} parameters trained{checked} ({spent})"

    def recipe(self) -> dict[str, Any]:
        """What a recipe holds under ``recovery``."""
        return {"config": self.config.to_dict(), "data_hash": self.data_hash}

    def to_dict(self) -> dict[str, Any]:
        """JSON value of the results; losses as pairs of step and loss."""
        return {
            "steps": self.steps,
            "best step": self.best_step,
            "trained parameters": self.trained,
            "rows": self.rows,
            "validation rows": self.validation_rows,
            "tokens": self.tokens,
            "resumed from step": self.resumed_from,
            "stopped early": self.stopped,
            "loss by step": list(self.losses.items()),
            "validation loss by step": list(self.validation.items()),
            "text": self.text,
            "computed in": self.dtype,
            "seconds": self.seconds,
        }


def recover(
    model: nn.Module,
    tokenizer: Any = None,
    config: RecoverConfig | None = None,
    *,
    data: TokenRows | Samples | Tensor | Sequence[Tensor] | None = None,
    teacher: nn.Module | None = None,
    work_dir: str | Path | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> RecoverReport:
    """Train LoRA adapters on a pruned model and merge them into its weights, in place.

    The model keeps its shape and is left in evaluation mode; if anything fails its weights are as before. A run that
    was stopped goes on with the same arguments and the same ``work_dir``, to the same weights. A loss or gradient that
    is not finite ends the training; the best validated step is kept all the same, and the report says so.

    Args:
        model: a causal language model of the Llama family in float32 or bfloat16, of any widths.
        tokenizer: its tokenizer; not needed with ``data``.
        config: how; defaults to :class:`RecoverConfig`.
        data: rows or token windows that stand in for ``config.data``.
        teacher: a dense model to imitate, on the same device, in place of ``config.teacher``.
        work_dir: folder of the checkpoints; it stays, for whoever gave it. None for a temporary one, which stays only
            if the run fails after its first checkpoint (the error's note says where).
        dtype: bfloat16 or float16 to run a float32 model under autocast; None or the model's own dtype for no cast.
        trust_remote_code: run modelling code that comes with ``config.teacher``.

    Raises:
        ValueError: before training, for anything that cannot be done as asked.
        FloatingPointError: a loss or gradient was not finite, and no validated step was better than the start; the
            message names the step, the last good state, and what to delete to begin anew.
        OSError: a checkpoint could not be written; earlier ones are kept.
        ImportError: the extra ``recover`` is not installed.
    """
    config = config or RecoverConfig()
    with require_extra("hf"):
        from pruneengine.recovery.training import train
    clock = Stopwatch()
    unfuse_experts(model)
    check_recovery(model, config, teacher, trust_remote_code)
    if data is None and tokenizer is None:
        raise ValueError(f"recovery on {config.data!r} needs a tokenizer, got None")
    with clock("text"):
        rows = as_rows(data) if data is not None else load_rows(config, tokenizer, model)
        training, validation = rows.split(config.validation_rows(len(rows)), config.seed)
        _check_tokens(rows, model)
    if teacher is None and config.teacher is not None:
        with clock("teacher"):
            weight = next(model.parameters())
            teacher, _ = load_model(config.teacher, weight.dtype, weight.device, trust_remote_code)
    objective = Objective(model, config, teacher.eval() if teacher is not None else None, dtype)
    run = _run(config, rows, dtype) | {MODEL: model_fingerprint(model)}
    if teacher is not None:
        run[TEACHER] = model_fingerprint(teacher)
    with _work(work_dir) as work, _adapted(model, config) as adapters:
        trained = [p for p in adapters.wrapped.parameters() if p.requires_grad]
        checkpoint = open_work(work, run)
        check_room(work, sum(p.numel() * p.element_size() for p in trained))
        with clock("train"):
            done = train(adapters.wrapped, objective, training, validation, config, work, checkpoint)
        with clock("merge"):
            adapters.settle(merge=done.best_step > 0)
    return RecoverReport(
        config, done.steps, done.best_step, done.losses, done.validation,
        trained=sum(p.numel() for p in trained), rows=len(training), tokens=training.predicted,
        validation_rows=0 if validation is None else len(validation), data_hash=rows.hash, text=rows.report,
        dtype=str(dtype or next(model.parameters()).dtype).removeprefix("torch."),
        resumed_from=None if checkpoint is None else step_of(checkpoint), stopped=done.stopped, seconds=clock.seconds,
    )  # fmt: skip


def check_recovery(
    model: nn.Module, config: RecoverConfig, teacher: nn.Module | None = None, trust_remote_code: bool = False
) -> None:
    """Refuse what :func:`recover` would refuse of a model or of its pruned self, for before any work is spent on it.

    Raises:
        ValueError: a dtype that cannot be trained, a target that matches nothing, options of a teacher without one.
        FileNotFoundError: there is no such teacher.
        ImportError: the extra ``recover`` is not installed.
    """
    with require_extra("recover"):
        import peft  # noqa: F401
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"a model in {dtype} cannot be trained safely: load it in float32 or bfloat16")
    find_targets(find_groups(model), config.targets)
    if teacher is None and config.teacher is not None:
        load_skeleton(config.teacher, trust_remote_code)
    if teacher is None and config.teacher is None:
        for name in ("distill_weight", "distill_temperature", "distill_topk"):
            if getattr(config, name) != getattr(RecoverConfig, name):
                raise ValueError(f"{name} is {getattr(config, name)!r}: an option of a teacher, and there is none")


def check_work_folder(folder: Path, config: RecoverConfig, rows: TokenRows, dtype: torch.dtype | None = None) -> None:
    """Refuse a work folder that :func:`recover` would refuse of any model, for before the model is pruned.

    Raises:
        ValueError, PermissionError: as :func:`pruneengine.recovery.work.open_work`.
    """
    check_work(folder, _run(config, rows, dtype), unknown=(MODEL, TEACHER))


def _run(config: RecoverConfig, rows: TokenRows, dtype: torch.dtype | None) -> dict[str, Any]:
    """What makes a run, whatever the model."""
    computed = {} if dtype is None else {"computed in": str(dtype).removeprefix("torch.")}
    return config.to_dict() | {"rows hash": rows.hash} | computed


def _check_tokens(rows: TokenRows, model: nn.Module) -> None:
    largest, size = max(int(row.max()) for row in rows.tokens), model.get_input_embeddings().weight.shape[0]
    if largest >= size:
        raise ValueError(f"token id {largest}: the model's vocabulary is {size}")


class _Adapters:
    def __init__(self, wrapped: Any) -> None:
        self.wrapped, self.attached = wrapped, True

    def settle(self, merge: bool) -> None:
        if self.attached:
            self.attached = False
            detach(self.wrapped, merge)


@contextmanager
def _adapted(model: nn.Module, config: RecoverConfig) -> Iterator[_Adapters]:
    """The model with adapters, which are gone afterwards whatever happens; so are traces of training on the model."""
    required = [(p, p.requires_grad) for p in model.parameters()]
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        adapters = _Adapters(attach(model, config))
        try:
            yield adapters
        finally:
            adapters.settle(merge=False)
            if config.gradient_checkpointing:
                model.gradient_checkpointing_disable()
            for parameter, flag in required:
                parameter.requires_grad_(flag)
                parameter.grad = None
            model.eval()


@contextmanager
def _work(folder: str | Path | None) -> Iterator[Path]:
    if folder is not None:
        yield Path(folder).expanduser().resolve()
        return
    work = Path(tempfile.mkdtemp(prefix=f"recovery-{time.strftime('%H%M%S')}-"))
    try:
        yield work
    except BaseException as error:
        if kept := list_checkpoints(work):
            error.add_note(f"checkpoints up to step {step_of(kept[-1])} are in {work}; pass it as work_dir to go on")
            raise
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
