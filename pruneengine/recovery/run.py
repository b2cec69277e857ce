"""Recovery of a pruned model: LoRA adapters are trained and merged into its weights.

The file is not called recover.py, because the package hands on the function under that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruneengine.checkpoint.load import load_model, load_skeleton
from pruneengine.common.errors import InputError
from pruneengine.common.optional_imports import require_extra
from pruneengine.common.progress import Stopwatch
from pruneengine.data.windows import Samples
from pruneengine.model import find_groups, model_fingerprint
from pruneengine.model.checks import check_positions
from pruneengine.model.experts import unfuse_experts
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.instructions import as_rows, load_rows
from pruneengine.recovery.lora import adapted, find_targets
from pruneengine.recovery.objective import Objective
from pruneengine.recovery.rows import TokenRows
from pruneengine.recovery.work import check_room, check_work, given_or_temporary, open_work, step_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Keys of the work folder's run file.
MODEL, TEACHER = "model", "teacher model"


@dataclass(frozen=True)
class RecoverReport:
    """Results of a recovery.

    Attributes:
        config: config of the recovery.
        steps: optimizer steps taken.
        best_step: steps whose adapters are merged into the weights; 0 if no step was better than the start.
        losses: training loss by step, nats per token (with a teacher: the mixed loss).
        validation: loss of the validation rows by step, step 0 before training; empty without validation.
        trained: parameters of the adapters.
        rows, validation_rows, tokens: rows trained on, rows for validation, and tokens predicted in one pass over the
            training rows.
        data_hash: hash of all rows.
        resumed_from: step from which a stopped run continued, or None.
        stopped: reason if the training ended before its last step (a loss or gradient was not finite), or None.
        text: report of the text, by source.
        dtype: dtype in which the training computed, e.g. ``"float32"``.
        seconds: seconds by stage.
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
        """Return the section ``recovery`` of a recipe."""
        return {"config": self.config.to_dict(), "data_hash": self.data_hash}

    def to_dict(self) -> dict[str, Any]:
        """Return the results as a JSON value, with losses as pairs of step and loss."""
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
    model: PreTrainedModel,
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

    The model keeps its shape and is left in evaluation mode. If anything fails, its weights are as before. A stopped
    run continues when it is called with the same arguments and the same ``work_dir``, and gives the same weights. A
    loss or gradient that is not finite ends the training; the best validated step is merged, and the report says so.

    Args:
        model: a causal language model of the Llama family in float32 or bfloat16, of any widths.
        tokenizer: its tokenizer; not needed with ``data``.
        config: config of the recovery, :class:`RecoverConfig` with its defaults if None.
        data: rows or token windows to use in place of ``config.data``.
        teacher: a dense model to imitate, on the same device, in place of ``config.teacher``.
        work_dir: folder of the checkpoints, which the caller removes. None for a temporary folder, which is kept only
            if the run fails after its first checkpoint (the error's note names it).
        dtype: bfloat16 or float16 to run a float32 model under autocast; None or the model's own dtype for no cast.
        trust_remote_code: run modelling code that comes with ``config.teacher``.

    Raises:
        ValueError: before training, for any argument that cannot be satisfied.
        FloatingPointError: a loss or gradient was not finite, and no validated step was better than the start. The
            message names the step, the last good state, and the folder to delete to begin anew.
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
        raise InputError(f"recovery on {config.data!r} needs a tokenizer, got None")
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
    with given_or_temporary(work_dir) as work, adapted(model, config) as adapters:
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
    """Raise the error that :func:`recover` would raise for this model, dense or pruned, before any work is spent.

    Raises:
        ValueError: a dtype that cannot be trained, a target that matches nothing, or options of a teacher without one.
        FileNotFoundError: the teacher does not exist.
        ImportError: the extra ``recover`` is not installed.
    """
    with require_extra("recover"):
        import peft  # noqa: F401
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"a model in {dtype} cannot be trained safely: load it in float32 or bfloat16")
    find_targets(find_groups(model), config.targets)
    if teacher is None and config.teacher is not None:
        load_skeleton(config.teacher, trust_remote_code)
    if teacher is None and config.teacher is None:
        for name in ("distill_weight", "distill_temperature", "distill_topk"):
            if getattr(config, name) != getattr(RecoverConfig, name):
                raise InputError(f"{name} is {getattr(config, name)!r}: an option of a teacher, and there is none")


def check_work_folder(folder: Path, config: RecoverConfig, rows: TokenRows, dtype: torch.dtype | None = None) -> None:
    """Raise the error that :func:`recover` would raise for this work folder with any model, before pruning.

    Raises:
        ValueError, PermissionError: as :func:`pruneengine.recovery.work.open_work`.
    """
    check_work(folder, _run(config, rows, dtype), unknown=(MODEL, TEACHER))


def _run(config: RecoverConfig, rows: TokenRows, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return the values that identify a run, apart from the model."""
    computed = {} if dtype is None else {"computed in": str(dtype).removeprefix("torch.")}
    return config.to_dict() | {"rows hash": rows.hash} | computed


def _check_tokens(rows: TokenRows, model: PreTrainedModel) -> None:
    check_positions(model.config, {"rows": max(len(row) for row in rows.tokens)})
    largest, size = max(int(row.max()) for row in rows.tokens), model.get_input_embeddings().weight.shape[0]
    if largest >= size:
        raise InputError(f"token id {largest}: the model's vocabulary is {size}")
