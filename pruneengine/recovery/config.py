"""Configuration of a recovery: a value that is validated where it is made, and its form in a recipe."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.common.recipes import read_keys
from pruneengine.common.validation import from_known, read_names, require_number, require_whole
from pruneengine.data.sources import check_source
from pruneengine.data.windows import parse_spec

VAL_ROWS = 2000
VAL_FRACTION = 0.1
WARMUP_FRACTION = 0.1


@dataclass(frozen=True)
class RecoverConfig:
    """Settings to train LoRA adapters on a pruned model. The defaults are those of LLM-Pruner's script.

    Attributes:
        data: training text: a text spec as for calibration, packed into windows, or instruction data (``alpaca``, or a
            file with columns instruction, output and optionally input), whose prompts are not trained on.
        rows: largest number of rows or windows, chosen by ``seed``; None for all, or the counts in ``data``.
        val_rows, val_fraction: rows kept for validation, by number or as a fraction of all rows. None for 2,000, but at
            most 10% of the rows (no validation with fewer than 10 rows). ``val_rows=0``: no validation, the adapters of
            the last step are kept.
        cutoff: tokens per window, and the largest length of an instruction row.
        targets: linears that get an adapter: names ("q_proj", "mlp.down_proj") or ``re:`` patterns of whole paths.
            None for every linear of the decoder layers. One text with commas is split
            (:func:`pruneengine.common.validation.read_names`).
        lora_r, lora_alpha, lora_dropout: rank, scale (the update is ``alpha / r`` times B A x) and dropout of x.
        lr, epochs, batch, warmup: AdamW at ``lr`` without weight decay, ``batch`` rows per step, gradients clipped to
            norm 1. The rate rises over ``warmup`` steps (at most a tenth of all) and falls linearly to zero.
        micro_batch: rows per forward pass; ``batch`` must be a multiple.
        max_steps: exact number of steps, in place of ``epochs``.
        eval_every: steps between validations (and checkpoints); None for 100, or a quarter of a shorter run.
        gradient_checkpointing: recompute activations, which takes less memory and about a third more time.
        teacher: model whose logits are imitated too (a folder, GGUF file or hub name), see
            :mod:`pruneengine.recovery.distill`.
        distill_weight: share of the imitation in the loss, in [0, 1].
        distill_temperature: softening of both distributions.
        distill_topk: number of the teacher's likeliest tokens that are imitated one by one; the other tokens are one
            class.
        seed: seed of the adapters, the order of the rows, the dropout and the choice of rows.
    """

    data: str = "alpaca"
    rows: int | None = None
    val_rows: int | None = None
    val_fraction: float | None = None
    cutoff: int = 256
    targets: tuple[str, ...] | None = None
    lora_r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    lr: float = 1e-4
    epochs: float = 2.0
    batch: int = 64
    micro_batch: int = 4
    warmup: int = 100
    max_steps: int | None = None
    eval_every: int | None = None
    gradient_checkpointing: bool = False
    teacher: str | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 2.0
    distill_topk: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        # The command line and YAML give the targets as text or lists.
        if self.targets is not None:
            object.__setattr__(self, "targets", read_names("targets", self.targets))
        if not isinstance(self.data, str):
            raise InputTypeError(f"data must be a text spec, got {self.data!r}")
        if not isinstance(self.teacher, str | None):
            raise InputTypeError(f"teacher must be a model's folder or name, got {self.teacher!r}")
        for name in ("lora_r", "batch", "micro_batch", "distill_topk"):
            _whole(name, getattr(self, name), 1)
        for name in ("rows", "max_steps", "eval_every"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        parse_spec(self.data, self.rows)
        _whole("cutoff", self.cutoff, 2)
        _whole("warmup", self.warmup, 0)
        _whole("seed", self.seed, 0)
        for name in ("lora_alpha", "lr", "epochs", "distill_temperature"):
            _within(name, getattr(self, name), "positive and finite", lambda v: 0 < v < math.inf)
        _within("lora_dropout", self.lora_dropout, "in [0, 1)", lambda v: 0 <= v < 1)
        _within("distill_weight", self.distill_weight, "in [0, 1]", lambda v: 0 <= v <= 1)
        if self.val_rows is not None:
            _whole("val_rows", self.val_rows, 0)
        if self.val_fraction is not None:
            _within("val_fraction", self.val_fraction, "in (0, 1)", lambda v: 0 < v < 1)
        if self.val_rows is not None and self.val_fraction is not None:
            raise InputError(f"val_rows {self.val_rows} and val_fraction {self.val_fraction}: give one of them")
        if self.batch % self.micro_batch:
            raise InputError(f"batch must be a multiple of micro_batch {self.micro_batch}, got {self.batch}")
        if self.targets is not None and not (self.targets and all(self.targets)):
            raise InputError(f"targets must be names of linears, got {self.targets!r}")
        for pattern in (t.removeprefix("re:") for t in self.targets or () if t.startswith("re:")):
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"targets: {pattern!r} is no regular expression ({error})") from None
        if type(self.gradient_checkpointing) is not bool:
            raise InputTypeError(f"gradient_checkpointing must be bool, got {self.gradient_checkpointing!r}")

    def check_sources(self) -> None:
        """Raise ValueError if there is no such text; call it before a model is loaded."""
        for name, count in parse_spec(self.data, self.rows):
            if name == "self":
                if count is None:
                    raise InputError("data 'self' needs a number of windows to sample: self:N, or rows N")
            else:
                check_source(name, instructions=True)

    def steps(self, rows: int) -> int:
        """Return the optimizer steps of a run over the given number of training rows."""
        # Rounded as in training_order: whole rows over all epochs together.
        return self.max_steps or math.ceil(max(1, round(rows * self.epochs)) / self.batch)

    def warmup_steps(self, steps: int) -> int:
        return min(self.warmup, int(steps * WARMUP_FRACTION))

    def eval_steps(self, steps: int) -> int:
        return self.eval_every or min(100, max(1, steps // 4))

    def validation_rows(self, rows: int) -> int:
        """Return the number of validation rows out of the given number of rows."""
        if self.val_rows is not None:
            count = self.val_rows
        elif self.val_fraction is not None:
            count = max(1, round(rows * self.val_fraction))
        else:
            count = min(VAL_ROWS, int(rows * VAL_FRACTION))
        if count >= rows:
            raise InputError(f"{count} of {rows} rows for validation leave none to train on")
        return count

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values that a recipe holds under ``recovery: config``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecoverConfig:
        """Build a config from :meth:`to_dict`; ValueError for unknown keys, with the known ones."""
        return from_known(cls, values)


def read_recovery_recipe(path: str | Path) -> dict[str, Any]:
    """Read the recovery's options from a YAML file or a checkpoint's recipe.

    They are the file's own keys, or those under ``recovery: config`` of a recipe.

    Raises:
        ValueError: the file holds no YAML keys and values, or is the recipe of a model that was never recovered.
    """
    content = read_keys(path)
    if "config" in content and "recovery" not in content:
        raise InputError(f"{path}: holds how the model was pruned and nothing of a recovery")
    if "recovery" not in content:
        return content
    recovery = content["recovery"]
    if not isinstance(recovery, dict) or not isinstance(recovery.get("config"), dict):
        raise InputError(f"{path}: expected keys and values under recovery: config")
    return recovery["config"]


def _whole(name: str, value: Any, least: int) -> None:
    require_whole(name, value, least, f"a whole number of at least {least}")


def _within(name: str, value: Any, expected: str, holds: Any) -> None:
    require_number(name, value)
    if not holds(value):
        raise InputError(f"{name} must be {expected}, got {value!r}")
