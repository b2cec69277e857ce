"""Sparse pruning, allocation by allocation: ``python -m benchmarks.sparse.run --data DIR --function 0.6=FILE ...``.

Perplexity of WikiText-2's test text after Wanda at several sparsities, and after magnitude and SparseGPT at the first
sparsity, for every allocation and for functions that a search found. Calibration is on 32 x 512 tokens of C4 unless
said otherwise; the papers take 128 x 2,048. OWL and functions read the dense model's statistics; they are collected
once per seed and are not part of a cell's seconds. Every cell is kept as it is measured, so a stopped run continues
where it was. ``--list`` shows the missing cells and estimates their time. The results go to
``benchmarks/results/sparse.csv`` and ``sparse.md``; with ``--model``, to files that carry the model's name.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

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
from benchmarks.sparse.cells import DENSE, METHODS, OURS, ROWS, Cell, Column, Study, cells, columns
from benchmarks.sparse.report import markdown, write_csv
from pruneengine.common.files import write_atomically
from pruneengine.common.progress import set_progress
from pruneengine.sparse.config import MODES

# Seconds on two cores, of a 135M model and the default sizes: what is said before anything was timed.
EXPECTED_FORWARD = 2.1e-3
EXPECTED_PRUNE = {"magnitude": 5.0, "wanda": 60.0, "sparsegpt": 180.0}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    set_progress(True)
    wanted = columns(options.methods, options.sparsities)
    try:
        functions = read_functions(options.function, wanted)
        study = load(options, functions)
    except (ValueError, OSError) as error:
        sys.exit(f"sparse: {error}")
    chosen = cells(wanted, options.rows, options.seeds, functions, options.full_rows if options.full else None)
    missing = [cell for cell in chosen if study.result(cell) is None]
    state = f"{len(missing)} of {len(chosen)} cells are missing{left(study, chosen, missing)}"
    if options.list:
        print(*missing, state, sep="\n")
        return
    print(state, flush=True)
    failed: dict[Cell, str] = {}
    try:
        failed = {} if options.known else run(study, chosen, missing)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
    report(study, chosen, options)
    if failed:
        sys.exit("\n".join(f"failed: {cell}: {reason}" for cell, reason in failed.items()))


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = study_parser(
        __doc__, "c4/c4_demo.jsonl and wikitext2/test_docs.jsonl", calibration="text spec", evaluation="text spec"
    )
    parser.add_argument(
        "--function", action="append", default=[], metavar="[METHOD@]SPARSITY=FILE",
        help="a function of a search (the row ours); without METHOD for every method that has none of its own",
    )  # fmt: skip
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="allocations")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--sparsities", type=float, nargs="+", default=[0.6, 0.5, 0.7], help="of wanda; the others take the first"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the calibration samples")
    parser.add_argument("--mode", choices=MODES, default="sequential", help="two-pass is what the papers' code does")
    parser.add_argument("--nsamples", type=int, default=32, help="calibration samples (published: 128)")
    parser.add_argument("--seqlen", type=int, default=512, help="tokens a sample (published: 2048)")
    parser.add_argument("--window", type=int, default=2048, help="tokens a window of the perplexity")
    parser.add_argument("--windows", type=int, default=16, help="how many, from the start of the text")
    parser.add_argument("--known", action="store_true", help="write what is there and measure nothing")
    parser.add_argument("--full", action="store_true", help="measure dense and --full-rows on all windows, too")
    parser.add_argument("--full-rows", nargs="*", choices=ROWS, default=["uniform", OURS], metavar="ROW")
    parser.add_argument("--batch-size", type=int, default=1, help="windows a forward of the perplexity")
    add_places(parser, "sparse", work="--cache", results="CSV file and the table")
    options = parser.parse_args(given)
    check_least(parser, options, 1, "nsamples", "seqlen", "windows", "batch_size", "threads")
    if wrong := [value for value in options.sparsities if not 0 < value < 1]:
        parser.error(f"--sparsities must lie between 0 and 1, got {wrong[0]}")
    return settle_texts(options)


def read_functions(given: Sequence[str], wanted: Sequence[Column]) -> dict[Column, Path]:
    """``[METHOD@]SPARSITY=FILE`` as the file of each column; ValueError for one that no column takes."""
    found: dict[Column, Path] = {}
    for text in sorted(given, key=lambda text: "@" in text.partition("=")[0]):
        column, separator, file = text.partition("=")
        method, at, sparsity = column.rpartition("@")
        try:
            value = float(sparsity)
        except ValueError:
            separator = ""
        if not separator or not file or (at and not method):
            raise ValueError(f"--function {text!r}: expected SPARSITY=FILE or METHOD@SPARSITY=FILE, such as 0.6=f.json")
        fitting = [one for one in wanted if one[1] == value and method in ("", one[0])]
        if not fitting:
            known = ", ".join(f"{m}@{s:g}" for m, s in wanted)
            raise ValueError(f"--function {text!r}: no column is {column}; there are {known}")
        if not Path(file).is_file():
            raise ValueError(f"--function {text!r}: there is no file {file}")
        found |= dict.fromkeys(fitting, Path(file))
    return found


def load(options: argparse.Namespace, functions: dict[Column, Path]) -> Study:
    """The model and its texts; nothing is measured yet."""
    check_texts(options)
    model, tokenizer = load_model(options)
    samples = load_seeds(options, model, tokenizer, options.nsamples)
    windows = pruneengine.evaluation_windows(
        options.evaluation, tokenizer, options.window, None if options.full else options.windows
    )
    options.cache.mkdir(parents=True, exist_ok=True)
    fields = {"mode": options.mode, "nsamples": options.nsamples, "seqlen": options.seqlen}
    return Study(
        model, samples, windows, options.windows, options.cache, functions, fields, batch_size=options.batch_size
    )


def run(study: Study, chosen: Sequence[Cell], missing: Sequence[Cell]) -> dict[Cell, str]:
    """Measure what is missing, a line a cell with the time that is left; the cells that failed, and why."""
    failed = {}
    for number, cell in enumerate(missing, 1):
        try:
            found = study.measure(cell)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            failed[cell] = " ".join(str(error).split())
            print(f"{number}/{len(missing)}  {cell}: failed ({failed[cell]})", flush=True)
            continue
        reached = f", sparsity {found['reached']:.4%}" if "reached" in found else ""
        print(
            f"{number}/{len(missing)}  {cell}: perplexity {found['perplexity']:.2f}{reached}  "
            f"({found['seconds']:.0f} s{left(study, chosen, missing[number:])})",
            flush=True,
        )
    return failed


def left(study: Study, chosen: Sequence[Cell], missing: Sequence[Cell]) -> str:
    """Roughly how long the missing cells take, by what cells of their kind took."""
    if not missing:
        return ""
    taken: dict[tuple[str, bool], list[float]] = {}
    for cell in chosen:
        if (found := study.result(cell)) is not None:
            taken.setdefault((cell.method, cell.full), []).append(found["seconds"])
    seconds = 0.0
    for cell in missing:
        tokens = (len(study.windows) if cell.full else study.first) * study.windows.tokens.shape[1]
        guess = EXPECTED_PRUNE.get(cell.method, 0.0) + tokens * EXPECTED_FORWARD
        known = taken.get((cell.method, cell.full))
        seconds += statistics.median(known) if known else guess
    return f"; about {seconds / 60:.0f} min left"


def report(study: Study, chosen: Sequence[Cell], options: argparse.Namespace) -> None:
    """The CSV and the table of what is there, whatever is still missing."""
    results = {cell: found for cell in chosen if (found := study.result(cell)) is not None}
    if Cell(DENSE) not in results:
        return
    name = model_name(options)
    setting = {
        "model": name, "calibration": Path(options.calibration).name, "samples": str(options.nsamples),
        "seqlen": str(options.seqlen), "mode": options.mode, "window": str(options.window),
        **setting_of(options, "torch", "transformers"),
    }  # fmt: skip
    labels = {column: path.name for column, path in study.functions.items()}
    stem = f"sparse-{name}" if options.model else "sparse"
    write_csv(options.results / f"{stem}.csv", results, labels, setting)
    text = markdown(results, labels, setting)
    write_atomically(options.results / f"{stem}.md", text)
    print("", text, f"written: {options.results / stem}.csv and .md", sep="\n")


if __name__ == "__main__":
    main()
