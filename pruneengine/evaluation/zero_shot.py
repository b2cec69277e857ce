"""Zero-shot accuracy of a model on lm-eval's tasks, item by item, so that two models can be compared in pairs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pruneengine.common.errors import InputError
from pruneengine.evaluation import lm_eval_adapter as harness
from pruneengine.model.decoder import autocast, inference

# Metrics of the averages of LLM-Pruner and of the papers that follow its protocol. The repository does not name them. A
# reproduction in its issue 25 matches the published numbers with exactly these metrics, and so does the dense row of
# its tables (LLaMA-7B: openbookqa 42.40 is acc_norm, arc_easy 67.45 is acc).
MAIN = MappingProxyType({
    "boolq": "acc",
    "piqa": "acc",
    "winogrande": "acc",
    "arc_easy": "acc",
    "hellaswag": "acc_norm",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
})  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One number of a task.

    Attributes:
        value: the task's aggregate, e.g. the fraction of right answers.
        standard_error: standard error of ``value`` over the items; None if lm-eval gives none.
        per_item: values of the items, in the task's order; None if an item is not a single number.
    """

    value: float
    standard_error: float | None
    per_item: tuple[float, ...] | None = None

    @property
    def is_mean(self) -> bool:
        """True if ``value`` is the mean of ``per_item``; a perplexity is not, as its items are log-likelihoods."""
        if not self.per_item:
            return False
        return math.isclose(statistics.fmean(self.per_item), self.value, abs_tol=1e-9)


@dataclass(frozen=True)
class TaskResult:
    """Results of one task.

    Attributes:
        task: name of the task.
        version: lm-eval's version of the task file.
        items: number of items asked, from the first on.
        available: number of items of the task.
        limit: requested number of items; None for all.
        shots: examples in the prompt, 0 unless the task file says otherwise.
        truncated: prompts (several per item) that were too long for the model and lost their beginning.
        questions: sha256 of the items, their prompts and their answers, equal exactly when the questions are equal.
        metrics: metrics by name, e.g. ``acc`` and ``acc_norm``; with the filter's name unless it is ``none``.
        lm_eval: version of lm-eval.
        dtype: dtype of the forward computation.
        seconds: wall-clock time.
    """

    task: str
    version: str
    items: int
    available: int
    limit: int | None
    shots: int
    truncated: int
    questions: str
    metrics: Mapping[str, Metric]
    lm_eval: str
    dtype: str
    seconds: float

    @property
    def main(self) -> str | None:
        """Metric that enters a mean over tasks, :func:`main_metric`."""
        return main_metric(self.task, self.metrics)


def main_metric(task: str, metrics: Iterable[str]) -> str | None:
    """Return the metric that stands for a task: that of :data:`MAIN`, else acc_norm, else acc, else None.

    A task is known by the beginning of its name: ``piqa_local`` is ``piqa``.
    """
    known = [MAIN[name] for name in MAIN if f"{task}_".startswith(f"{name}_")][:1]
    return next((name for name in (*known, "acc_norm", "acc") if name in metrics), None)


def mean_accuracy(results: Iterable[TaskResult]) -> Metric:
    """Return the mean of the tasks' main metrics; each task counts once, and the tasks' errors are independent.

    Raises:
        ValueError: no task has a main metric.
    """
    mains = [result.metrics[result.main] for result in results if result.main is not None]
    if not mains:
        raise InputError("no task with acc or acc_norm: there is no mean accuracy")
    errors = [metric.standard_error for metric in mains if metric.standard_error is not None]
    error = None if len(errors) < len(mains) else math.sqrt(sum(e * e for e in errors)) / len(mains)
    return Metric(sum(metric.value for metric in mains) / len(mains), error)


def zero_shot(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int | str = 8,
    dtype: torch.dtype | None = None,
    manager: Any = None,
    done: Callable[[TaskResult], None] = lambda _: None,
) -> dict[str, TaskResult]:
    """Ask a model the questions of lm-eval's tasks, without a chat template.

    All tasks are loaded before the first is asked.

    Args:
        model: a transformers causal language model of any widths; its training mode is unchanged afterwards.
        tokenizer: a tokenizer of transformers.
        tasks: names of tasks, groups or tags.
        include_path: folder of further task files.
        limit: number of first items of each task to ask; None for all.
        batch_size: sequences per forward pass; "auto" for the largest number that lm-eval finds to fit (at most 64),
            "auto:N" to determine it N times as the sequences get shorter.
        dtype: bfloat16 or float16 to run a float32 model under autocast; None or the model's own dtype for no cast.
        manager: task manager of :func:`find_tasks`, if the names were checked before the model was loaded.
        done: called with each task's result as soon as it is there, so that none is lost.

    Returns:
        The results by task name, in order, with the tasks of a group one by one.

    Raises:
        ValueError: an unknown task (with the nearest names), or a bad argument.
        FloatingPointError: the log-likelihood of an answer is not finite, as of a model with NaN in its weights.
        RuntimeError: a task's own functions failed; the message names the task.
        OSError: a task's data cannot be read.
        ImportError: the extra ``eval`` is not installed.
    """
    check_limit(limit)
    check_batch_size(batch_size)
    manager = manager or harness.find_tasks(tasks, include_path)
    loaded = harness.load_tasks(manager, tasks)
    weight = next(model.parameters())
    autocast(weight, dtype)
    cast = None if dtype == weight.dtype else dtype
    computed = str(cast or weight.dtype).removeprefix("torch.")
    results = {}
    with inference(model):
        wrapped = harness.wrap(model, tokenizer, batch_size, cast)
        for name, task in loaded.items():
            start = time.perf_counter()
            output = harness.measure(wrapped, task, limit)
            results[name] = _read(name, output, limit, computed, wrapped.truncated, time.perf_counter() - start)
            done(results[name])
    return results


def check_limit(limit: int | None) -> None:
    """Raise ValueError unless ``limit`` is None or a positive whole number."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit={limit!r}: expected a positive number of items, or None for all")


def check_batch_size(batch_size: int | str) -> None:
    """Raise ValueError unless ``batch_size`` is a positive whole number, "auto" or "auto:N"."""
    if isinstance(batch_size, str):
        legal = re.fullmatch(r"auto(:[1-9]\d*)?", batch_size) is not None
    else:
        legal = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size >= 1
    if not legal:
        raise InputError(f"batch_size={batch_size!r}: expected a positive number of sequences, auto or auto:N")


def _read(
    name: str, output: Mapping[str, Any], limit: int | None, dtype: str, truncated: int, seconds: float
) -> TaskResult:
    samples, values = output["samples"][name], output["results"][name]
    metrics = {}
    for key in values:
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr"):
            continue
        items = tuple(s[metric] for s in samples if s["filter"] == chosen and metric in s)
        scalar = items and all(isinstance(item, (int, float)) for item in items)
        error = values.get(f"{metric}_stderr,{chosen}")
        metrics[metric if chosen == "none" else key] = Metric(
            value=float(values[key]),
            standard_error=float(error) if isinstance(error, (int, float)) else None,
            per_item=tuple(map(float, items)) if scalar else None,
        )
    counts = output["n-samples"][name]
    parts = "".join(s[part] for s in samples for part in ("doc_hash", "prompt_hash", "target_hash"))
    questions = hashlib.sha256(parts.encode()).hexdigest()
    return TaskResult(
        task=name, version=str(output["versions"][name]), items=counts["effective"], available=counts["original"],
        limit=limit, shots=output["n-shot"][name], truncated=truncated, questions=questions,
        metrics=metrics, lm_eval=importlib.metadata.version("lm_eval"), dtype=dtype, seconds=seconds,
    )  # fmt: skip
