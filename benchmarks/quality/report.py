"""Results of the quality study as a CSV file, one line per number, and as Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.cells import RECOVERY, SPEED, TEXT, Cell, carries_signal
from benchmarks.quality.models import DENSE, Variant
from pruneengine.bench.record import write_lines
from pruneengine.evaluation.zero_shot import main_metric

Results = Mapping[Cell, Mapping[str, Any]]
COLUMNS = (
    "row", "ratio", "seed", "recovered", "column", "quantity", "value", "standard_error", "difference",
    "difference_error", "count", "seconds", "threads", "commit",
)  # fmt: skip


def write_csv(path: Path, results: Results, setting: Mapping[str, str]) -> None:
    """Every number; ``difference`` is to the dense model, paired over windows or items (of the loss for the text)."""
    lines = [dict(zip(COLUMNS, line, strict=True)) | setting for line in _lines(results)]
    write_lines(path, lines, [*COLUMNS, *setting])


def _lines(results: Results) -> Iterator[tuple]:
    for cell, found in results.items():
        v = cell.variant
        head = (v.row, v.ratio, v.seed, int(v.recovered), cell.column)
        tail = (found["seconds"], found["threads"], found["commit"])
        dense = results.get(Cell(cell.column, Variant(DENSE)))
        if cell.column == SPEED:
            numbers = {name: found["model"][name] for name in ("parameters", "weight_bytes", "kv_bytes_per_token")}
            numbers |= {f"{name}_tokens_per_second": found["speed"][name] for name in ("prefill", "decode")}
            if "dense speed" in found:
                numbers |= {
                    f"{n}_times_dense": found["speed"][n] / found["dense speed"][n] for n in ("prefill", "decode")
                }
                numbers["reached"] = found["reached"]
            for name, value in numbers.items():
                yield (*head, name, value, "", "", "", "", *tail)
        elif cell.column == TEXT:
            values = found["per_window"]
            difference = _paired(values, dense["per_window"]) if dense and v.row != DENSE else ("", "")
            yield (*head, "nll", found["nll"], _error(values), *difference, len(values), *tail)
            yield (*head, "perplexity", found["perplexity"], "", "", "", found["tokens"], *tail)
        elif cell.column != RECOVERY:
            for name, metric in found["metrics"].items():
                items = metric["per_item"]
                same = dense and v.row != DENSE and dense["questions"] == found["questions"]
                difference = _paired(items, dense["metrics"][name]["per_item"]) if same else ("", "")
                yield (*head, name, metric["value"], metric["standard_error"], *difference, found["items"], *tail)


def tables(results: Results, rows: Sequence[str], ratios: Sequence[float], tasks: Sequence[str]) -> str:
    """A Markdown table a ratio; a number that is not measured yet is a dash."""
    signal = [task for task in tasks if carries_signal(task)]
    heads = ["", "parameters", "prefill, decode against dense", "perplexity", "perplexity, recovered"]
    for chosen in _task_sets(signal, tasks):
        mean = f"mean of {len(chosen)} tasks"
        heads += [mean, f"{mean}, recovered", "of dense"]
    text = []
    for ratio in ratios:
        text += [f"{ratio:.0%} of the parameters in heads and mlp", "", _line(heads), _line(["---"] * len(heads))]
        for row in rows:
            found = {cell: value for cell, value in results.items() if _belongs(cell.variant, row, ratio)}
            if not found:
                continue
            cells = [row, *_size(found), _perplexity(found, False), _perplexity(found, True)]
            for chosen in _task_sets(signal, tasks):
                cells += _accuracies(found, results, chosen)
            text.append(_line(cells))
        text.append("")
    return "\n".join([*text, *_footnotes(results, signal, tasks)])


def _task_sets(signal: Sequence[str], tasks: Sequence[str]) -> list[Sequence[str]]:
    return [chosen for chosen in (signal, tasks) if chosen and not (chosen is tasks and list(signal) == list(tasks))]


def _belongs(variant: Variant, row: str, ratio: float) -> bool:
    return variant.row == row and (row == DENSE or variant.ratio == ratio)


def _size(found: Results) -> tuple[str, str]:
    speeds = [value for cell, value in found.items() if cell.column == SPEED]
    if not speeds:
        return "–", "–"
    first = speeds[0]
    if "dense speed" not in first:
        speed = f"{first['speed']['prefill']:.0f}, {first['speed']['decode']:.1f} tokens/s"
    else:
        speed = ", ".join(f"{first['speed'][n] / first['dense speed'][n]:.2f}x" for n in ("prefill", "decode"))
    return f"{first['model']['parameters']:,}", speed


def _perplexity(found: Results, recovered: bool) -> str:
    """Exponential of the mean loss over the seeds, and their range."""
    losses = [v["nll"] for c, v in found.items() if c.column == TEXT and c.variant.recovered == recovered]
    if not losses:
        return "–"
    lowest, mean, highest = (_exp(loss) for loss in (min(losses), statistics.mean(losses), max(losses)))
    return mean if len(losses) == 1 else f"{mean} ({lowest} to {highest})"


def _exp(loss: float) -> str:
    value = math.exp(loss)
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _accuracies(found: Results, results: Results, tasks: Sequence[str]) -> list[str]:
    before, after = (_mean(found, tasks, recovered) for recovered in (False, True))
    dense = _mean({c: v for c, v in results.items() if c.variant.row == DENSE}, tasks, False)
    best = after or before
    share = f"{best[0] / dense[0]:.1%}" if best and dense and dense[0] else "–"
    return [*("–" if m is None else f"{m[0]:.3f} ± {m[1]:.3f}" for m in (before, after)), share]


def _mean(found: Results, tasks: Sequence[str], recovered: bool) -> tuple[float, float] | None:
    """Mean of the tasks' main metrics and its standard error over items, each item first averaged over the seeds."""
    values, errors = [], []
    for task in tasks:
        items = [
            v["metrics"][main_metric(task, v["metrics"])]["per_item"]
            for c, v in found.items()
            if c.column == task and c.variant.recovered == recovered
        ]
        if not items:
            return None
        averaged = [statistics.mean(column) for column in zip(*items, strict=True)]
        values.append(statistics.mean(averaged))
        errors.append(_error(averaged))
    return statistics.mean(values), math.hypot(*errors) / len(tasks)


def _footnotes(results: Results, signal: Sequence[str], tasks: Sequence[str]) -> list[str]:
    notes = []
    texts = [value for cell, value in results.items() if cell.column == TEXT]
    if texts:
        seeds = sorted({cell.variant.seed for cell in results if cell.variant.row != DENSE})
        counts = f"{texts[0]['windows']} windows of {texts[0]['seqlen']} tokens"
        notes.append(f"perplexity over {counts}; calibration seeds {', '.join(map(str, seeds)) or 'none'}")
    asked = [(cell.column, value) for cell, value in results.items() if cell.column in tasks]
    if asked:
        named = dict.fromkeys(f"{task} {main_metric(task, value['metrics'])}" for task, value in asked)
        items = sorted({value["items"] for _, value in asked})
        notes.append(
            f"tasks: {', '.join(named)}; {' or '.join(map(str, items))} items each; mean of {len(signal)}: "
            f"{', '.join(signal)}; ± one standard error; of dense: recovered where it is measured, else as pruned"
        )
    return notes


def _paired(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    differences = [a - b for a, b in zip(values, base, strict=True)]
    return statistics.mean(differences), _error(differences)


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float("nan")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
