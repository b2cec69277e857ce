"""Results side by side: differences to the first, with standard errors, and only where the same thing was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pruneengine.evaluation.results import Beside, Results, TextResult
from pruneengine.evaluation.zero_shot import TaskResult, mean_accuracy


@dataclass(frozen=True)
class Cell:
    """One measurement of one model.

    Attributes:
        value: None where it was not measured.
        standard_error: of the value.
        difference: from the first column: of the loss in nats for a perplexity, of the metric for a task, relative
            for sizes and speeds. None in the first column and where ``note`` says why not.
        difference_error: its standard error, or None.
        paired: whether that error is of the paired differences of windows or items, whose own difficulty cancels; else
            the two errors are taken for independent.
        note: why there is no difference, or what to know about it.
    """

    value: float | None
    standard_error: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    paired: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        name: what was measured.
        kind: count, bytes, perplexity, accuracy (of a task, 0 to 1), score (another metric of a task), rate or ratio.
        cells: one for each model.
        main: it enters the mean of the tasks.
    """

    name: str
    kind: str
    cells: tuple[Cell, ...]
    main: bool = False


def compare(results: Sequence[Results]) -> list[Row]:
    """Every measurement that any of the results has, a row each.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("nothing to compare: expected at least one results.json")
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
        known = not note and first and value is not None
        cells.append(Cell(value, difference=value / first - 1 if known else None, note=note))
    return Row(name, kind, tuple(cells))


def _texts(results: Sequence[Results]) -> list[Row]:
    def cell(found: TextResult | None, first: TextResult | None) -> Cell:
        if found is None:
            return Cell(None)
        plain = Cell(found.perplexity)
        if first is None:
            return plain
        if found.samples != first.samples:
            return replace(plain, note="other text or tokenizer")
        difference, error = _paired(found.per_window, first.per_window)
        note = _other(found, first, "dtype")
        return Cell(found.perplexity, difference=difference, difference_error=error, paired=True, note=note)

    names = dict.fromkeys(name for r in results for name in r.texts)
    return [
        Row(f"perplexity, {name}", "perplexity", _against_first([r.texts.get(name) for r in results], cell))
        for name in names
    ]


def _tasks(results: Sequence[Results]) -> list[Row]:
    rows = []
    for task in dict.fromkeys(name for r in results for name in r.tasks):
        held = [r.tasks.get(task) for r in results]
        known = next(found for found in held if found is not None)
        for metric in known.metrics:
            cells = _against_first(held, lambda found, first, metric=metric: _task_cell(found, first, metric))
            shares = all(cell.value is None or 0 <= cell.value <= 1 for cell in cells)
            kind = "accuracy" if shares else "score"
            rows.append(Row(f"{task}, {metric}", kind, cells, main=metric == known.main))
    # A mean of other tasks is another quantity, so it is over those that all results hold.
    common = [name for name in results[0].tasks if all(name in r.tasks for r in results)]
    mains = [row for row in rows if row.main and row.name.partition(",")[0] in common]
    if len(mains) > 1:
        cells = [_mean_cell(results[i], common, [row.cells[i] for row in mains]) for i in range(len(results))]
        rows.append(Row(f"mean of {len(mains)} tasks (*)", "accuracy", tuple(cells)))
    return rows


def _task_cell(found: TaskResult | None, first: TaskResult | None, metric: str) -> Cell:
    if found is None or metric not in found.metrics:
        return Cell(None)
    here = found.metrics[metric]
    plain = Cell(here.value, here.standard_error)
    if first is None or metric not in first.metrics:
        return plain
    for name in ("version", "limit", "shots", "questions"):
        ours, theirs = getattr(found, name), getattr(first, name)
        if ours != theirs and not (name == "limit" and found.questions == first.questions):
            return replace(plain, note="other questions" if name == "questions" else f"{name} {ours}, not {theirs}")
    there = first.metrics[metric]
    note = "; ".join(filter(None, (_other(found, first, "lm_eval", "lm-eval "), _other(found, first, "dtype"))))
    if here.is_mean and there.is_mean:
        difference, error = _paired(here.per_item, there.per_item)
        return replace(plain, difference=difference, difference_error=error, paired=True, note=note)
    errors = (here.standard_error, there.standard_error)
    error = None if None in errors else math.hypot(*errors)
    return replace(plain, difference=here.value - there.value, difference_error=error, note=note)


def _mean_cell(results: Results, tasks: Sequence[str], cells: Sequence[Cell]) -> Cell:
    mean = mean_accuracy(results.tasks[name] for name in tasks)
    plain = Cell(mean.value, mean.standard_error)
    differences = [cell.difference for cell in cells]
    if None in differences:
        noted = next((cell.note for cell in cells if cell.difference is None), "")
        return replace(plain, note=noted)
    note = next((cell.note for cell in cells if cell.note), "")
    errors = [cell.difference_error for cell in cells]
    error = None if None in errors else math.hypot(*errors) / len(cells)
    paired = all(cell.paired for cell in cells)
    return replace(plain, difference=statistics.mean(differences), difference_error=error, paired=paired, note=note)


def _speeds(results: Sequence[Results]) -> list[Row]:
    """Speeds of separate runs differ with the machine's load too; only ``dense`` was measured in turn."""
    if not any(r.speed for r in results):
        return []
    first = results[0].speed
    notes = []
    for found in (r.speed for r in results[1:]):
        same = found is None or first is None or _setting(found) == _setting(first)
        notes.append("" if same else "other device, dtype or lengths")
    rows = []
    for name in ("prefill", "decode"):
        values = [getattr(r.speed, name) if r.speed else None for r in results]
        rows.append(_relative(f"{name}, tokens/s (measured apart)", "rate", values, notes))
    return rows


def _beside(results: Sequence[Results]) -> list[Row]:
    """Every result as a multiple of the dense model that was measured in turn with it."""
    if not any(r.dense for r in results):
        return []
    measures: dict[str, Callable[[Results | Beside], float]] = {
        "parameters": lambda side: side.model.parameters,
        "weights": lambda side: side.model.weight_bytes,
        "KV cache": lambda side: side.model.kv_bytes_per_token,
        "prefill": lambda side: side.speed.prefill,
        "decode": lambda side: side.speed.decode,
    }
    return [
        Row(
            f"{name}, times the dense model beside it",
            "ratio",
            tuple(Cell(measure(r) / measure(r.dense) if r.dense else None) for r in results),
        )
        for name, measure in measures.items()
    ]


def _setting(speed) -> tuple:
    return speed.device, speed.dtype, speed.prompt_tokens, speed.new_tokens


def _other(found: TextResult | TaskResult, first: TextResult | TaskResult, name: str, label: str = "") -> str:
    """What both were measured with, where it differs, the first column's first."""
    ours, theirs = getattr(found, name), getattr(first, name)
    return "" if ours == theirs else f"{label}{theirs} and {ours}"


def _against_first(held: Sequence, cell: Callable) -> tuple[Cell, ...]:
    return cell(held[0], None), *(cell(found, held[0]) for found in held[1:])


def _paired(values: Sequence[float], first: Sequence[float]) -> tuple[float, float | None]:
    differences = [a - b for a, b in zip(values, first, strict=True)]
    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else None
    return statistics.mean(differences), error
