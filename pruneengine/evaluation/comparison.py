"""Comparison of results: differences to the first, with standard errors, wherever the same thing was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from pruneengine.common.errors import InputError
from pruneengine.evaluation.results import Beside, Results, TextResult
from pruneengine.evaluation.speed import SpeedResult
from pruneengine.evaluation.zero_shot import TaskResult, mean_accuracy

Measured = TypeVar("Measured", TextResult, TaskResult)


@dataclass(frozen=True)
class Cell:
    """One measurement of one model.

    Attributes:
        value: measured value, None if it was not measured.
        standard_error: standard error of the value, or None.
        difference: difference from the first column: of the loss in nats for a perplexity, of the metric for a task,
            relative for sizes and speeds. None in the first column and where ``note`` gives the reason.
        difference_error: standard error of the difference, or None.
        paired: whether ``difference_error`` comes from paired differences of windows or items, whose own difficulty
            cancels; otherwise the two errors count as independent.
        note: reason why there is no difference, or a remark on it.
    """

    value: float | None
    standard_error: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    paired: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Attributes:
        name: name of the measurement.
        kind: count, bytes, perplexity, accuracy (of a task, 0 to 1), score (another metric of a task), rate or ratio.
        cells: one cell per model.
        main: whether the row enters the mean of the tasks.
    """

    name: str
    kind: str
    cells: tuple[Cell, ...]
    main: bool = False


def compare(results: Sequence[Results]) -> list[Row]:
    """Return one row per measurement that any of the results has.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise InputError("nothing to compare: expected at least one results.json")
    return [
        _relative("parameters", "count", [float(r.model.parameters) for r in results]),
        _relative("weights", "bytes", [float(r.model.weight_bytes) for r in results]),
        _relative("KV cache, each token", "bytes", [float(r.model.kv_bytes_per_token) for r in results]),
        *_texts(results),
        *_tasks(results),
        *_speeds(results),
        *_beside(results),
    ]


def _relative(name: str, kind: str, values: Sequence[float | None], notes: Sequence[str] | None = None) -> Row:
    first, *others = values
    cells = [Cell(first)]
    for value, note in zip(others, notes or [""] * len(others), strict=True):
        difference = None if note or not first or value is None else value / first - 1
        cells.append(Cell(value, difference=difference, note=note))
    return Row(name, kind, tuple(cells))


def _texts(results: Sequence[Results]) -> list[Row]:
    names = dict.fromkeys(name for r in results for name in r.texts)
    return [
        Row(f"perplexity, {name}", "perplexity", _against_first([r.texts.get(name) for r in results], _text_cell))
        for name in names
    ]


def _text_cell(text: TextResult | None, first: TextResult | None) -> Cell:
    if text is None:
        return Cell(None)
    plain = Cell(text.perplexity)
    if first is None:
        return plain
    if text.samples != first.samples:
        return replace(plain, note="other text or tokenizer")
    difference, error = _paired(text.per_window, first.per_window)
    note = _other(text, first, "dtype")
    return Cell(text.perplexity, difference=difference, difference_error=error, paired=True, note=note)


def _tasks(results: Sequence[Results]) -> list[Row]:
    rows = []
    for task in dict.fromkeys(name for r in results for name in r.tasks):
        columns = [r.tasks.get(task) for r in results]
        known = next(result for result in columns if result is not None)
        for metric in known.metrics:
            cells = _against_first(columns, partial(_task_cell, metric=metric))
            shares = all(cell.value is None or 0 <= cell.value <= 1 for cell in cells)
            kind = "accuracy" if shares else "score"
            rows.append(Row(f"{task}, {metric}", kind, cells, main=metric == known.main))
    # The mean is over the tasks that all results have, because a mean of other tasks is another quantity.
    common = [name for name in results[0].tasks if all(name in r.tasks for r in results)]
    mains = [row for row in rows if row.main and row.name.partition(",")[0] in common]
    if len(mains) > 1:
        means = [_mean_cell(results[i], common, [row.cells[i] for row in mains]) for i in range(len(results))]
        rows.append(Row(f"mean of {len(mains)} tasks (*)", "accuracy", tuple(means)))
    return rows


def _task_cell(task: TaskResult | None, first: TaskResult | None, metric: str) -> Cell:
    if task is None or metric not in task.metrics:
        return Cell(None)
    here = task.metrics[metric]
    plain = Cell(here.value, here.standard_error)
    if first is None or metric not in first.metrics:
        return plain
    for name in ("version", "limit", "shots", "questions"):
        ours, theirs = getattr(task, name), getattr(first, name)
        if ours != theirs and not (name == "limit" and task.questions == first.questions):
            return replace(plain, note="other questions" if name == "questions" else f"{name} {ours}, not {theirs}")
    there = first.metrics[metric]
    note = "; ".join(filter(None, (_other(task, first, "lm_eval", "lm-eval "), _other(task, first, "dtype"))))
    if here.per_item and there.per_item and here.is_mean and there.is_mean:
        difference, error = _paired(here.per_item, there.per_item)
        return replace(plain, difference=difference, difference_error=error, paired=True, note=note)
    error = _joint_error([here.standard_error, there.standard_error])
    return replace(plain, difference=here.value - there.value, difference_error=error, note=note)


def _mean_cell(results: Results, tasks: Sequence[str], cells: Sequence[Cell]) -> Cell:
    mean = mean_accuracy(results.tasks[name] for name in tasks)
    plain = Cell(mean.value, mean.standard_error)
    differences = [cell.difference for cell in cells if cell.difference is not None]
    if len(differences) < len(cells):
        noted = next((cell.note for cell in cells if cell.difference is None), "")
        return replace(plain, note=noted)
    note = next((cell.note for cell in cells if cell.note), "")
    joint = _joint_error([cell.difference_error for cell in cells])
    return replace(
        plain,
        difference=statistics.mean(differences),
        difference_error=None if joint is None else joint / len(cells),
        paired=all(cell.paired for cell in cells),
        note=note,
    )


def _speeds(results: Sequence[Results]) -> list[Row]:
    """Return rows of speeds of separate runs, which differ with the machine's load too.

    Only ``dense`` was measured in turn, see :func:`_beside`.
    """
    if not any(r.speed for r in results):
        return []
    first = results[0].speed
    notes = []
    for speed in (r.speed for r in results[1:]):
        same = speed is None or first is None or _setting(speed) == _setting(first)
        notes.append("" if same else "other device, dtype or lengths")
    rows = []
    for name in ("prefill", "decode"):
        values = [getattr(r.speed, name) if r.speed else None for r in results]
        rows.append(_relative(f"{name}, tokens/s (measured apart)", "rate", values, notes))
    return rows


def _beside(results: Sequence[Results]) -> list[Row]:
    """Return rows of every result as a multiple of the dense model that was measured in turn with it."""
    if not any(r.dense for r in results):
        return []
    measures: dict[str, Callable[[Results | Beside], float]] = {
        "parameters": lambda side: side.model.parameters,
        "weights": lambda side: side.model.weight_bytes,
        "KV cache": lambda side: side.model.kv_bytes_per_token,
        "prefill": lambda side: _speed(side).prefill,
        "decode": lambda side: _speed(side).decode,
    }
    return [
        Row(
            f"{name}, times the dense model beside it",
            "ratio",
            tuple(Cell(measure(r) / measure(r.dense) if r.dense else None) for r in results),
        )
        for name, measure in measures.items()
    ]


def _speed(side: Results | Beside) -> SpeedResult:
    assert side.speed is not None, "a dense model is measured only beside the speed of the other"
    return side.speed


def _setting(speed: SpeedResult) -> tuple[str, str, int, int]:
    return speed.device, speed.dtype, speed.prompt_tokens, speed.new_tokens


def _other(result: Measured, first: Measured, name: str, label: str = "") -> str:
    """Return the values of a setting, the first column's first, if they differ."""
    ours, theirs = getattr(result, name), getattr(first, name)
    return "" if ours == theirs else f"{label}{theirs} and {ours}"


def _against_first(
    columns: Sequence[Measured | None], cell: Callable[[Measured | None, Measured | None], Cell]
) -> tuple[Cell, ...]:
    return cell(columns[0], None), *(cell(result, columns[0]) for result in columns[1:])


def _joint_error(errors: Sequence[float | None]) -> float | None:
    """Return the standard error of a sum of independent values, None if one of their errors is not known."""
    known = [error for error in errors if error is not None]
    return math.hypot(*known) if len(known) == len(errors) else None


def _paired(values: Sequence[float], first: Sequence[float]) -> tuple[float, float | None]:
    differences = [a - b for a, b in zip(values, first, strict=True)]
    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else None
    return statistics.mean(differences), error
