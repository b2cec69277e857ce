"""Results of the sparse study as a CSV file and a Markdown table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sparse.cells import DENSE, METHODS, OURS, ROWS, Cell, Column
from pruneengine.bench.record import write_lines

Results = Mapping[Cell, Mapping[str, Any]]


def write_csv(path: Path, results: Results, functions: Mapping[Column, str], setting: Mapping[str, str]) -> None:
    """A line a cell; ``loss_difference`` and its standard error are paired with the dense model over the windows."""
    lines = []
    for cell, found in results.items():
        dense = results.get(Cell(DENSE, full=cell.full))
        pruned = cell.row != DENSE
        difference, error = paired([found], [dense]) if pruned and dense else (0.0, 0.0)
        line = {
            "method": cell.method, "sparsity": cell.sparsity, "allocation": cell.row,
            "function": functions.get((cell.method, cell.sparsity), "") if cell.row == OURS else "",
            "seed": cell.seed if pruned else "", "windows": len(found["per window"]), "tokens": found["tokens"],
            "planned": found.get("planned", 0.0), "reached": found.get("reached", 0.0),
            "exact_matrices": f"{found['exact']} of {found['matrices']}" if pruned else "",
            "perplexity": found["perplexity"], "nll": found["nll"], "loss_difference": difference,
            "standard_error": error, "prune_seconds": found.get("prune seconds", 0.0),
            "stages": "; ".join(f"{stage} {seconds:.3g}" for stage, seconds in found.get("stages", {}).items()),
            "perplexity_seconds": found["perplexity seconds"], "dtype": found["dtype"], "commit": found["commit"],
        }  # fmt: skip
        lines.append(line | setting)
    write_lines(path, lines, list(lines[0]))


def markdown(results: Results, functions: Mapping[Column, str], setting: Mapping[str, str]) -> str:
    """A table of the first windows, one of the whole text where it was measured, and what each column shows."""
    parts = [
        f"{setting['model']}, {setting['mode']}, calibrated on {setting['samples']} x {setting['seqlen']} tokens of "
        f"{setting['calibration']} (published: 128 x 2048); {setting['device']}, {setting['threads']} threads, "
        f"{setting['versions']}, {setting['date']}."
    ]
    for full in (False, True):
        here = {cell: found for cell, found in results.items() if cell.full == full}
        if here:
            parts += [_table(here, setting, full), "\n".join(_verdicts(here))]
    if used := [f"- {m} at {s:.0%}: `{name}`" for (m, s), name in functions.items()]:
        parts += ["Functions of the row ours:", "\n".join(used)]
    if stages := _costs(results):
        parts.append(stages)
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(results: Results, setting: Mapping[str, str], full: bool) -> str:
    columns = sorted({(c.method, c.sparsity) for c in results if c.row != DENSE}, key=_place)
    dense = results.get(Cell(DENSE, full=full))
    windows = len(next(iter(results.values()))["per window"])
    which = f"all {windows}" if full else f"the first {windows}"
    title = f"Perplexity of {which} windows of {setting['window']} tokens"
    title += f", dense {dense['perplexity']:.2f}:" if dense else ":"
    lines = [
        "| allocation | " + " | ".join(f"{m} {s:.0%}" for m, s in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    best = {column: min(_means(results, column).items(), key=lambda item: item[1])[0] for column in columns}
    for row in ROWS:
        cells = [_shown(results, column, row, row == best[column]) for column in columns]
        if any(cells):
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return f"{title}\n\n" + "\n".join(lines)


def _shown(results: Results, column: Column, row: str, best: bool) -> str:
    """The median over seeds, and in brackets all of them where there are several."""
    values = [found["perplexity"] for found in _seeds(results, column, row).values()]
    if not values:
        return ""
    text = f"{statistics.median(values):.2f}"
    text = f"**{text}**" if best else text
    return text + (f" ({', '.join(f'{value:.2f}' for value in values)})" if len(values) > 1 else "")


def _verdicts(results: Results) -> list[str]:
    """Whether the found function is the lowest of its column, and by how much against the best of the others."""
    lines = []
    for column in sorted({(c.method, c.sparsity) for c in results if c.row == OURS}, key=_place):
        means = _means(results, column)
        others = {row: loss for row, loss in means.items() if row != OURS}
        if OURS not in means or not others:
            continue
        rival = min(others, key=others.get)
        ours, theirs = (_seeds(results, column, row) for row in (OURS, rival))
        seeds = [seed for seed in ours if seed in theirs]
        mean, error = paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
        word = "met: ours is lowest" if means[OURS] < others[rival] else "MISSED: ours is not lowest"
        lines.append(f"- {column[0]} at {column[1]:.0%}: {word}; {mean:+.4f} ± {error:.4f} nats against {rival}")
    return lines


def _costs(results: Results) -> str:
    """Median seconds of a prune and of its stages, a line a method."""
    lines = []
    for method in METHODS:
        own = [found for cell, found in results.items() if cell.method == method]
        if not own:
            continue
        stages: dict[str, list[float]] = {}
        for found in own:
            for stage, seconds in found["stages"].items():
                stages.setdefault(stage, []).append(seconds)
        parts = ", ".join(f"{stage} {statistics.median(values):.3g}" for stage, values in stages.items())
        exact = sum(found["exact"] for found in own), sum(found["matrices"] for found in own)
        total = statistics.median(found["prune seconds"] for found in own)
        lines.append(
            f"- {method}: {total:.1f} s a prune (medians: {parts}); zeros counted in the weights equal the plan's in "
            f"{exact[0]:,} of {exact[1]:,} matrices"
        )
    return "\n".join(lines)


def paired(results: Sequence[Mapping], bases: Sequence[Mapping]) -> tuple[float, float]:
    """Mean loss difference, nats, and its standard error over windows, each first averaged over the seeds."""
    pairs = [
        [a - b for a, b in zip(found["per window"], base["per window"], strict=True)]
        for found, base in zip(results, bases, strict=True)
    ]
    if not pairs:
        return float("nan"), float("nan")
    windows = [statistics.mean(column) for column in zip(*pairs, strict=True)]
    error = statistics.stdev(windows) / math.sqrt(len(windows)) if len(windows) > 1 else float("nan")
    return statistics.mean(windows), error


def _means(results: Results, column: Column) -> dict[str, float]:
    """Mean loss over seeds of the rows that have as many seeds as any, so that rows are compared on equal terms."""
    seeds = {row: _seeds(results, column, row) for row in ROWS}
    most = max(map(len, seeds.values()))
    whole = {row: found.values() for row, found in seeds.items() if len(found) == most}
    return {row: statistics.mean(one["nll"] for one in found) for row, found in whole.items()}


def _seeds(results: Results, column: Column, row: str) -> dict[int, Mapping[str, Any]]:
    found = {c.seed: value for c, value in results.items() if c.row == row and (c.method, c.sparsity) == column}
    return dict(sorted(found.items()))


def _place(column: Column) -> tuple[int, float]:
    return METHODS.index(column[0]), column[1]
