"""Training loop: transformers' Trainer on the adapters, with our loss, our progress and whole checkpoints.

Imported only if transformers is installed.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from pruneengine.common.errors import NotFiniteError
from pruneengine.common.progress import track
from pruneengine.model.decoder import inference
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.objective import Objective
from pruneengine.recovery.rows import TokenRows, collate, training_order
from pruneengine.recovery.work import list_checkpoints, step_of, whole_or_nothing

SAVE_AFTER_S = 600.0
LOGGED_STEPS = 1000
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Trained:
    """Result of the loop: the adapters of ``best_step`` are in the model; ``stopped`` is the reason of an early end."""

    steps: int
    best_step: int
    losses: dict[int, float]
    validation: dict[int, float]
    stopped: str | None = None


class RunRows(Dataset[tuple[Tensor, int]]):
    """Rows of a whole run, in the order of training."""

    def __init__(self, rows: TokenRows, order: list[int]) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[self.order[index]]


class Watch(TrainerCallback):
    """Callback that refuses gradients that are not finite, and validates and saves the last step.

    It also saves long runs by the clock.
    """

    def __init__(self, validates: bool) -> None:
        self.validates = validates
        self.saved_at = time.monotonic()

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not torch.stack(torch._foreach_norm(gradients)).sum().isfinite():
            raise NotFiniteError(f"the gradient of step {state.global_step + 1} is not finite")

    def on_step_end(self, args, state, control, **_):
        last = state.global_step >= state.max_steps
        control.should_evaluate |= last and self.validates
        control.should_save |= last or time.monotonic() - self.saved_at > SAVE_AFTER_S

    def on_save(self, args, state, control, **_):
        self.saved_at = time.monotonic()


class LoraTrainer(Trainer):
    """Trainer with the chunked loss summed over a step's tokens, validation by tokens and no bars of its own."""

    control: Any  # Trainer's, which is untyped

    def __init__(self, objective: Objective, validation: TokenRows | None, micro_batches: int, **options: Any) -> None:
        super().__init__(**options)
        self.objective, self.validation = objective, validation
        # Makes Trainer count the predicted tokens of a whole step, over all its micro-batches.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(Watch(validation is not None))
        self.micro_batches = micro_batches
        self._ticks: Any = None

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        loss = self.objective(inputs["input_ids"], inputs["labels"]) / num_items_in_batch
        if not torch.isfinite(loss):
            raise NotFiniteError(f"the loss of step {self.state.global_step + 1} is {loss.item():g}")
        return loss

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        if self._ticks is None:
            done = self.state.global_step * self.args.gradient_accumulation_steps
            self._ticks = track(range(self.micro_batches - done), "recover")
        next(self._ticks, None)
        return super().training_step(*arguments, **options)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        assert self.validation is not None, "Trainer evaluates only if there are validation rows"
        size = self.args.per_device_train_batch_size
        total, count = 0.0, 0
        with inference(self.model):
            batches = track(self.validation.batches(size), "validate", -(-len(self.validation) // size))
            for batch in batches:
                loss, tokens = self.objective.nll(**{k: v.to(self.args.device) for k, v in batch.items()})
                total, count = total + loss, count + tokens
        if not math.isfinite(total):
            raise NotFiniteError(f"the validation loss of step {self.state.global_step} is {total:g}")
        metrics = {f"{metric_key_prefix}_loss": total / count}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        with whole_or_nothing(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(*arguments, **options)


def train(
    wrapped: Any,
    objective: Objective,
    rows: TokenRows,
    validation: TokenRows | None,
    config: RecoverConfig,
    work: Path,
    checkpoint: Path | None = None,
) -> Trained:
    """Train the adapters of a ``peft.PeftModel``; at the end it holds those of the best step.

    A loss or gradient that is not finite ends the training. The best validated step is then the result, if one was
    better than the start.

    Args:
        wrapped: the model with adapters, on the device to train on.
        objective: losses of the model.
        rows: training rows.
        validation: rows that choose the best step, or None for the last step.
        config: config of the recovery.
        work: folder of the checkpoints.
        checkpoint: checkpoint to continue from, or None.

    Raises:
        FloatingPointError: a loss or gradient is not finite and no validated step is better than the start. The message
            names the step, the last good state, and the folder to delete to begin anew.
        OSError: a checkpoint could not be written (earlier ones are kept), or that of the best step is missing.
    """
    epochs = None if config.max_steps else config.epochs
    steps = config.steps(len(rows))
    order = training_order([len(row) for row in rows.tokens], steps, config.batch, epochs, config.seed)
    device = next(wrapped.parameters()).device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), _quiet():
        trainer = LoraTrainer(
            objective, validation, -(-len(order) // config.micro_batch),
            model=wrapped, args=_arguments(config, steps, device, work, validation is not None, checkpoint is None),
            train_dataset=RunRows(rows, order), eval_dataset=validation, data_collator=collate,
        )  # fmt: skip
        stopped: str | None = None
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except FloatingPointError as error:
            stopped = str(error)
        finally:
            if trainer._ticks is not None:
                trainer._ticks.close()
    done, history = trainer.state.global_step, trainer.state.log_history
    checked = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = min(checked, key=lambda step: checked[step], default=0) if validation is not None else done
    if stopped is not None and (validation is None or best == 0):
        raise NotFiniteError(f"{stopped}: training stopped; {_advice(work, done, checked)}")
    if best not in (0, done):
        _load_adapters(wrapped, work / f"checkpoint-{best}")
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    return Trained(done, best, losses, checked, stopped)


def _advice(work: Path, done: int, checked: Mapping[int, float]) -> str:
    """Return the place of the last good state after ``done`` steps and a loss that is not finite, and how to restart.

    A state is good if it gave a finite loss itself: in validation, or in a whole later step.
    """
    kept = list_checkpoints(work)
    good = [path for path in kept if step_of(path) in checked or step_of(path) < done]
    state = f"step {step_of(good[-1])}, adapters in {good[-1]}" if good else "none"
    anew = f"the same settings would stop there again: delete {work} and" if kept else "no checkpoint was written:"
    return f"last good state: {state}; {anew} begin anew, with a smaller lr where that is the reason"


def _load_adapters(wrapped: Any, checkpoint: Path) -> None:
    """Load the adapters of a checkpoint; FileNotFoundError if it has none.

    Trainer knows the best checkpoint by an absolute path and silently skips one that was moved, so it is not asked.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    file = checkpoint / ADAPTER_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"the adapters of the best step are gone: expected {file}; delete {checkpoint.parent} to begin anew"
        )
    set_peft_model_state_dict(wrapped, load_file(file))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Trainer's remarks on file times, pinned memory and the resumed scheduler, which nobody can act on."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _arguments(
    config: RecoverConfig, steps: int, device: torch.device, work: Path, validates: bool, fresh: bool
) -> TrainingArguments:
    every = config.eval_steps(steps)
    arguments = TrainingArguments(
        output_dir=os.fspath(work),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch // config.micro_batch,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps(steps),
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        eval_strategy="steps" if validates else "no",
        eval_steps=every,
        eval_on_start=validates and fresh,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        # With it the checkpoint of the best step outlives the newer ones.
        metric_for_best_model="loss" if validates else None,
        greater_is_better=False if validates else None,
        logging_steps=max(1, steps // LOGGED_STEPS),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
    )
    # With more than one visible GPU, Trainer would copy the model to all of them.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
