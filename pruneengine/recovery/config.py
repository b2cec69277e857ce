"""How to recover, as a value: validated where it is made, written to and read from a recipe."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneengine.common.recipes import read_keys
from pruneengine.common.validation import from_known, require_number, require_whole, split_names
from pruneengine.data.sources import check_source
from pruneengine.data.windows import parse_spec

VAL_ROWS = 2000
VAL_FRACTION = 0.1
WARMUP_FRACTION = 0.1


@dataclass(frozen=True)
class RecoverConfig:
    """How to train LoRA adapters on a pruned model. The defaults are those of LLM-Pruner's script.

    Attributes:
        data: what to train on: a text spec as for calibration, packed into windows, or instruction data (``alpaca``,
            or a file with columns instruction, output and optionally input), whose prompts are not trained on.
        rows: at most this many rows or windows, chosen by ``seed``; None for all, or the counts in ``data``.
        val_rows, val_fraction: rows kept for validation, by number or as a fraction of all; None for 2,000, capped to
            10% of the rows (which of fewer than 10 is none). ``val_rows=0``: no validation, the last step is kept.
        cutoff: tokens a window, and the most an instruction row keeps.
        targets: linears that get an adapter: names ("q_proj", "mlp.down_proj") or ``re:`` patterns of whole paths;
            None for every linear of the decoder layers; as one text, parted by commas
            (:func:`pruneengine.common.validation.split_names`).
        lora_r, lora_alpha, lora_dropout: rank, scale (the update is ``alpha / r`` times B A x) and dropout of x.
        lr, epochs, batch, warmup: AdamW at ``lr`` without weight decay, ``batch`` rows a step, gradients clipped to
            norm 1; the rate rises over ``warmup`` steps (at most a tenth of all) and falls linearly to zero.
        micro_batch: rows a forward pass; ``batch`` must be a multiple.
        max_steps: exactly this many steps, whatever ``epochs`` says.
        eval_every: steps between validations (and checkpoints); None for 100, or a quarter of a shorter run.
        gradient_checkpointing: recompute activations: less memory, about a third slower.
        teacher: model whose logits are imitated too (a folder, GGUF file or hub name), see
            :mod:`pruneengine.recovery.distill`.
        distill_weight, distill_temperature, distill_topk: share of the imitation in the loss, in [0, 1]; softening of
            both distributions; logits of the teacher told apart, the rest is one class.
        seed: of the adapters, the order of the rows, the dropout and the choice of rows.
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
        # A command line and YAML write these as text or lists.
        targets = split_names(self.targets) if isinstance(self.targets, str) else self.targets
        object.__setattr__(self, "targets", None if targets is None else tuple(part.strip() for part in targets))
        if not isinstance(self.data, str):
            raise TypeError(f"data must be a text spec, got {self.data!r}")
        parse_spec(self.data, self.rows)
        for name in ("lora_r", "batch", "micro_batch", "distill_topk"):
            _whole(name, getattr(self, name), 1)
        for name in ("rows", "max_steps", "eval_every"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
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
            raise ValueError(f"val_rows {self.val_rows} and val_fraction {self.val_fraction}: give one of them")
        if self.batch % self.micro_batch:
            raise ValueError(f"batch must be a multiple of micro_batch {self.micro_batch}, got {self.batch}")
        if self.targets is not None and not (self.targets and all(self.targets)):
            raise ValueError(f"targets must be names of linears, got {self.targets!r}")
        for pattern in (t.removeprefix("re:") for t in self.targets or () if t.startswith("re:")):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"targets: {pattern!r} is no regular expression ({error})") from None
        if type(self.gradient_checkpointing) is not bool:
            raise TypeError(f"gradient_checkpointing must be bool, got {self.gradient_checkpointing!r}")

    def check_sources(self) -> None:
        """Whether the text exists, before a model is loaded; ValueError if not."""
        for name, _ in parse_spec(self.data, self.rows):
            if name != "self":
                check_source(name)

    def steps(self, rows: int) -> int:
        """Optimizer steps of a run over so many training rows."""
        # Of the whole rows that the epochs read together, as training_order rounds them.
        return self.max_steps or math.ceil(max(1, round(rows * self.epochs)) / self.batch)

    def warmup_steps(self, steps: int) -> int:
        return min(self.warmup, int(steps * WARMUP_FRACTION))

    def eval_steps(self, steps: int) -> int:
        return self.eval_every or min(100, max(1, steps // 4))

    def validation_rows(self, rows: int) -> int:
        """How many of all rows are kept from training."""
        if self.val_rows is not None:
            count = self.val_rows
        elif self.val_fraction is not None:
            count = max(1, round(rows * self.val_fraction))
        else:
            count = min(VAL_ROWS, int(rows * VAL_FRACTION))
        if count >= rows:
            raise ValueError(f"{count} of {rows} rows for validation leave none to train on")
        return count

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what a recipe holds under ``recovery: config``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecoverConfig:
        """The inverse of :meth:`to_dict`; ValueError for unknown keys, with the known ones."""
        return from_known(cls, values)


def read_recovery_recipe(path: str | Path) -> dict[str, Any]:
    """The recovery's options in a YAML file: its keys, or those under ``recovery: config`` of a checkpoint's recipe.

    Raises:
        ValueError: the file cannot be read as YAML keys and values, or is the recipe of a model never recovered.
    """
    content = read_keys(path)
    if "config" in content and "recovery" not in content:
        raise ValueError(f"{path}: holds how the model was pruned and nothing of a recovery")
    if "recovery" not in content:
        return content
    recovery = content["recovery"]
    if not isinstance(recovery, dict) or not isinstance(recovery.get("config"), dict):
        raise ValueError(f"{path}: expected keys and values under recovery: config")
    return recovery["config"]


def _whole(name: str, value: Any, least: int) -> None:
    require_whole(name, value, least, f"a whole number of at least {least}")


def _within(name: str, value: Any, expected: str, holds: Any) -> None:
    require_number(name, value)
    if not holds(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
