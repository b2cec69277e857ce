"""Results of the AdaPruner benchmark as lines of a CSV file and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.adapruner.cells import Cell

COLUMNS = (
    "ratio", "shape", "seed", "what", "search", "held_out", "report", "reached", "trials", "complete", "stopped",
    "repeats", "seconds", "device", "threads", "versions", "commit", "date",
)  # fmt: skip
Results = Mapping[Cell, dict[str, Any]]


def csv_lines(
    results: Results, dense: Mapping[str, float], setting: Mapping[str, str]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """A line a perplexity triple: dense, every fixed metric, random search, and the search as found and compensated."""
    lines: list[dict[str, Any]] = []
    for cell, found in results.items():
        shared = {"ratio": cell.ratio, "shape": cell.shape, "seed": cell.seed, "commit": found["commit"], **setting}
        lines += [shared | row for row in rows(cell, found, dense)]
    return lines, COLUMNS


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """What each search found, without its trials' blocks."""
    kept = ("best", "finalists", "baselines", "importance", "dense", "seconds")
    return {
        str(cell): {key: found["search"][key] for key in kept}
        | {"trials": [{k: v for k, v in trial.items() if k != "blocks"} for trial in found["search"]["trials"]]}
        for cell, found in results.items()
    }


def json_lines(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line a trial, finalist or fixed metric, so that it is short and its changes can be read."""

    def value(of: Any) -> str:
        if isinstance(of, list):
            return "[\n" + ",\n".join(map(json.dumps, of)) + "\n]"
        return json.dumps(of)

    def fields(of: Mapping[str, Any]) -> str:
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {value(item)}" for key, item in of.items()) + "\n}"

    return "{\n" + ",\n".join(f"{json.dumps(cell)}: {fields(of)}" for cell, of in summaries.items()) + "\n}\n"


def rows(cell: Cell, found: dict[str, Any], dense: Mapping[str, float]) -> list[dict[str, Any]]:
    """The lines of one cell; perplexities, None where one was not measured."""
    search, report = found["search"], found["report"]
    base = search["dense"]["search"], search["dense"]["held out"]
    name = "adapruner" if cell.sampler == "tpe" else "random search"
    states = [trial["state"] for trial in search["trials"]]
    counts = {
        "trials": len(states), "complete": states.count("complete"), "stopped": states.count("pruned"),
        "repeats": sum(trial["origin"] == "repeat" for trial in search["trials"]),
        "seconds": round(search["seconds"]["trials"]),
    }  # fmt: skip
    winner = report["winner"]
    plain = report.get("winner, not compensated", winner)
    best = search["best"]
    lines = []
    if cell.sampler == "tpe":
        lines.append(_line("dense", base, 0.0, 0.0, dense["perplexity"], 0.0))
        for fixed in search["baselines"]:
            measured = report.get(fixed["name"], {}).get("perplexity")
            lines.append(_line(fixed["name"], base, fixed["value"], fixed["held_out"], measured, fixed["reached"]))
        if best["compensation"] != "none":
            what = f"{name}, {best['compensation']}"
            lines.append(_line(what, base, None, best["compensated"], winner["perplexity"], search["reached"]))
    lines.append(_line(name, base, best["value"], best["held_out"], plain["perplexity"], search["reached"]) | counts)
    return lines


def _line(
    what: str,
    base: tuple[float, float],
    search: float | None,
    held_out: float | None,
    report: float | None,
    reached: float | None,
) -> dict[str, Any]:
    above = (search, held_out)
    both = [
        None if extra is None else math.exp(min(loss + extra, 700)) for loss, extra in zip(base, above, strict=True)
    ]
    return {"what": what, "search": both[0], "held_out": both[1], "report": report, "reached": reached}


def table(results: Results, dense: Mapping[str, float]) -> str:
    """Medians over the seeds: search, held-out and report perplexity of everything that was measured."""
    grouped: dict[tuple[float, str], dict[str, list[dict[str, Any]]]] = {}
    for cell, found in results.items():
        group = grouped.setdefault((cell.ratio, cell.shape), {})
        for row in rows(cell, found, dense):
            group.setdefault(row["what"], []).append(row)
    lines = []
    for (ratio, shape), group in sorted(grouped.items()):
        lines += [
            "",
            f"{ratio:.0%}, {shape}, median of seeds",
            "",
            "| | search | held out | report | seeds |",
            "|---|" + "---|" * 4,
        ]
        for what, found in sorted(group.items(), key=lambda item: _median(item[1], "search") or math.inf):
            cells = (_median(found, column) for column in ("search", "held_out", "report"))
            lines.append(
                f"| {what} | " + " | ".join("" if c is None else f"{c:.2f}" for c in cells) + f" | {len(found)} |"
            )
    return "\n".join(lines)


def _median(found: list[dict[str, Any]], column: str) -> float | None:
    values = [row[column] for row in found if row[column] is not None]
    return median(values) if values else None
