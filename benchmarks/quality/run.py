"""Quality of a model after pruning, method by method: ``python -m benchmarks.quality.run --data DIR``.

WikiText-2 perplexity, zero-shot accuracy, size and speed of the dense model and of the pruned model of every method, as
pruned and after the same short recovery. Every number is a cell that is kept as soon as it is measured, so a stopped
run continues where it was. ``--list`` shows the missing cells and estimates their time. The results go to
``benchmarks/results/quality.csv``, and a table to standard output.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import pruneengine
from benchmarks.common.options import (
    add_places,
    check_least,
    check_texts,
    load_model,
    load_seeds,
    model_name,
    setting_of,
    settle_texts,
    study_parser,
)
from benchmarks.quality.cells import RECOVERY, SPEED, TEXT, Cell, Study, cells
from benchmarks.quality.models import DENSE, ROWS, Models, recovery_config
from benchmarks.quality.report import tables, write_csv
from pruneengine.common.progress import set_progress
from pruneengine.common.recipes import read_yaml
from pruneengine.evaluation import lm_eval_adapter as harness

TASKS = ("hellaswag_local", "piqa_local", "arc_easy_local", "winogrande_local", "openbookqa_local", "boolq_local")
# Seconds on two cores, of a 135M model: what is said before anything was timed. A task's are for 200 items.
EXPECTED = {SPEED: 20, TEXT: 75, RECOVERY: 400}
EXPECTED_TASK = 90
TASK = "tasks"
# Ten minutes on a core: steps of 8 x 128 tokens, at a rate for so few of them.
RECOVER = {
    "max_steps": 60, "batch": 8, "micro_batch": 8, "cutoff": 128, "lr": 1e-3, "val_rows": 32, "eval_every": 20,
}  # fmt: skip


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    set_progress(True)
    try:
        study = load(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(f"quality: {error}")
    chosen = cells(study.models, options.rows, options.ratios, options.seeds, options.tasks)
    chosen = [cell for cell in chosen if (cell.column if cell.column in EXPECTED else TASK) in options.columns]
    absent = [f"{r} at {x:.0%}" for r in options.rows[1:] for x in options.ratios if not study.models.exists(r, x)]
    if absent:
        print(f"left out: {', '.join(absent)}; give each a plan by --plan ROW@RATIO=FILE")
    if study.models.recovery is None:
        print("left out: all columns after recovery")
    missing = [cell for cell in chosen if study.result(cell) is None]
    if options.list:
        print(*missing, f"{len(missing)} of {len(chosen)} cells are missing{_left(study, chosen, missing)}", sep="\n")
        return
    print(f"{len(chosen) - len(missing)} of {len(chosen)} cells are here{_left(study, chosen, missing)}", flush=True)
    try:
        run(study, chosen, [] if options.known else missing)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
    report(study, chosen, options)


def arguments() -> argparse.Namespace:
    parser = study_parser(
        __doc__, "c4/, wikitext2/, alpaca/ and lm_eval_tasks/", calibration="text spec", evaluation="text spec"
    )
    parser.add_argument("--include-path", type=Path, help="folder of task files (default: of DATA)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of calibration samples and recovery")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    columns = [*EXPECTED, TASK]
    parser.add_argument("--columns", nargs="+", choices=columns, default=columns, help="only these (speed: when quiet)")
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    parser.add_argument("--plan", action="append", default=[], metavar="ROW@RATIO=FILE", help="a plan.json for a row")
    parser.add_argument("--recovery", nargs="*", metavar="NAME=VALUE", help="fields of RecoverConfig", default=[])
    parser.add_argument("--no-recovery", action="store_true", help="leave out the columns after recovery")
    parser.add_argument("--nsamples", type=int, default=32, help="samples of the statistics")
    parser.add_argument("--seqlen", type=int, default=128, help="tokens a sample")
    parser.add_argument("--held-out", type=int, default=8, help="further samples, for methods that fit")
    parser.add_argument("--window", type=int, default=512, help="tokens a window of the perplexity")
    parser.add_argument("--windows", type=int, default=32, help="how many, from the start of the text")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a forward of the tasks")
    parser.add_argument("--known", action="store_true", help="write what is there and measure nothing")
    add_places(parser, "quality", work="--cache", results="CSV file")
    options = parser.parse_args()
    check_least(parser, options, 1, "nsamples", "limit", "windows", "threads", "batch_size")
    check_least(parser, options, 2, "held_out")
    # Every table begins with what the others are compared to.
    options.rows = [DENSE, *(row for row in options.rows if row != DENSE)]
    options.include_path = options.include_path or (options.data / "lm_eval_tasks" if options.data else None)
    return settle_texts(options)


def load(options: argparse.Namespace) -> Study:
    """The model and its texts; nothing is measured yet, and what cannot be is refused."""
    check_texts(options)
    plans = dict(parse_plan(text) for text in options.plan)
    recovery = None
    if not options.no_recovery:
        recovery = recovery_options(options.recovery, options.data)
        recovery_config(recovery, options.seeds[0])
    harness.find_tasks(options.tasks, options.include_path)
    options.cache.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(options)
    samples = load_seeds(options, model, tokenizer, options.nsamples + options.held_out)
    windows = pruneengine.evaluation_windows(options.evaluation, tokenizer, options.window, options.windows)
    models = Models(model, tokenizer, samples, options.cache, options.held_out, plans, recovery)
    name = Path(options.evaluation).name
    return Study(models, windows, name, options.include_path, options.limit, options.batch_size)


def parse_plan(text: str) -> tuple[tuple[str, float], Path]:
    """``adapruner@0.2=plan.json`` as the key and value of :attr:`Models.plans`; ValueError otherwise."""
    place, found, path = text.partition("=")
    row, at, ratio = place.partition("@")
    try:
        key = (row, float(ratio))
    except ValueError:
        key = None
    if not (found and at and path) or key is None or row not in ROWS or row == DENSE:
        known = ", ".join(name for name in ROWS if name != DENSE)
        raise ValueError(f"--plan {text!r}: expected ROW@RATIO=FILE, ROW one of {known}")
    return key, Path(path)


def recovery_options(given: list[str], data: Path | None) -> dict[str, Any]:
    """The short recovery, with what the command line says otherwise; values are read as YAML."""
    options = dict(RECOVER)
    if data is not None:
        options["data"] = str(data / "alpaca" / "alpaca_cleaned_1000.jsonl")
    for text in given:
        name, found, value = text.partition("=")
        if not found:
            raise ValueError(f"--recovery {text!r}: expected NAME=VALUE")
        options[name] = read_yaml(value)
    return options


def run(study: Study, chosen: list[Cell], missing: list[Cell]) -> None:
    """Measure what is missing, a line a cell with the time that is left. A cell that fails stays missing."""
    for number, cell in enumerate(missing, 1):
        try:
            found = study.measure(cell)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            print(f"{number}/{len(missing)}  {cell}: FAILED, {' '.join(str(error).split())}", flush=True)
            continue
        print(
            f"{number}/{len(missing)}  {cell}: {brief(cell, found)} ({found['seconds']:.0f} s"
            f"{_left(study, chosen, missing[number:])})",
            flush=True,
        )


def brief(cell: Cell, found: dict[str, Any]) -> str:
    """A cell's result in a few words."""
    if cell.column == TEXT:
        return f"perplexity {found['perplexity']:.2f}"
    if cell.column == SPEED:
        return f"{found['model']['parameters']:,} parameters, {found['speed']['decode']:.1f} tokens/s"
    if cell.column == RECOVERY:
        return "recovered"
    return ", ".join(f"{name} {metric['value']:.3f}" for name, metric in found["metrics"].items())


def _left(study: Study, chosen: list[Cell], missing: list[Cell]) -> str:
    """The time that the missing cells take, by the mean of those of their column that are here."""
    if not missing:
        return ""
    spent: dict[str, list[float]] = {}
    for cell in chosen:
        if (found := study.result(cell)) is not None:
            spent.setdefault(cell.column, []).append(found["seconds"])
    task = EXPECTED_TASK * (study.limit or 200) / 200
    expected = {c.column: EXPECTED.get(c.column, task) for c in missing}
    expected |= {column: statistics.mean(times) for column, times in spent.items()}
    minutes = sum(expected[cell.column] for cell in missing) / 60
    return f"; about {minutes:.0f} min left" if minutes < 120 else f"; about {minutes / 60:.1f} h left"


def report(study: Study, chosen: list[Cell], options: argparse.Namespace) -> None:
    results = {cell: found for cell in chosen if (found := study.result(cell)) is not None}
    if not results:
        return
    recovery = study.models.recovery or {}
    setting = {
        "model": model_name(options),
        "calibration": Path(options.calibration).name, "samples": str(options.nsamples), "seqlen": str(options.seqlen),
        "text": Path(options.evaluation).name, "window": str(options.window), "limit": str(options.limit),
        "recovery": " ".join(f"{k}={Path(v).name if k == 'data' else v}" for k, v in recovery.items()) or "none",
        **setting_of(options, "torch", "transformers", "lm_eval", "peft"),
    }  # fmt: skip
    del setting["threads"]  # A cell has its own.
    write_csv(options.results / "quality.csv", results, setting)
    print("", tables(results, options.rows, options.ratios, options.tasks), sep="\n")
    missing = len(chosen) - len(results)
    print(f"{missing} of {len(chosen)} cells are missing (--list names them)" if missing else "no cell is missing")
    print(f"written: {options.results / 'quality.csv'}")


if __name__ == "__main__":
    main()
