"""HyWIA against its parts, fixed blends and LLM-Pruner's metrics: ``python -m benchmarks.hywia.run --data DIR``.

Perplexity of WikiText-2's test text under the masks that each method chooses, for each ratio, shape and seed of the
calibration text. Every cell is kept as it is measured, so a stopped run continues where it was; ``--list`` shows which
cells are missing. The results go to ``benchmarks/results/hywia.csv`` and ``hywia-blend.png``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
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
from benchmarks.hywia.cells import DENSE, METHODS, SHAPES, Cell, Study, cells
from benchmarks.hywia.report import blend_table, plot, tables, write_csv
from pruneengine.common.progress import set_progress

FUSION_TARGET = 0.05


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    set_progress(True)
    try:
        study = load(options)
    except (ValueError, OSError) as error:
        sys.exit(f"hywia: {error}")
    chosen = cells(options.seeds, options.ratios, options.shapes, options.methods)
    if options.list:
        missing = [cell for cell in chosen if study.result(cell) is None]
        print(*missing, f"{len(missing)} of {len(chosen)} cells are missing", sep="\n")
        return
    run(study, chosen)
    results = {cell: found for cell in chosen if (found := study.result(cell)) is not None}
    setting = {
        "calibration": Path(options.calibration).name, "samples": str(options.nsamples), "seqlen": str(options.seqlen),
        "window": str(options.window), **setting_of(options, "torch", "transformers"),
    }  # fmt: skip
    write_csv(options.results / "hywia.csv", results, setting)
    print(tables(results))
    shape = options.shapes[0]
    print("", blend_table(results, max(options.ratios), shape), sep="\n")
    print("", *fusion_times(study, options.seeds[0]), *fit_times(study, results), sep="\n")
    picture = options.results / "hywia-blend.png"
    drawn = plot(picture, results, options.ratios, shape, f"HyWIA on {model_name(options)}")
    print(f"written: {options.results / 'hywia.csv'}")
    print(f"written: {picture}" if drawn else "no plot: matplotlib is not installed")


def arguments() -> argparse.Namespace:
    parser = study_parser(
        __doc__, "c4/c4_demo.jsonl and wikitext2/test_docs.jsonl", calibration="text spec", evaluation="text spec"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the calibration samples")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["uniform", "per-layer"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--nsamples", type=int, default=32, help="samples of the statistics")
    parser.add_argument("--seqlen", type=int, default=128, help="tokens a sample")
    parser.add_argument("--held-out", type=int, default=8, help="further samples, for the fit of variant c")
    parser.add_argument("--steps", type=int, default=40, help="of that fit")
    parser.add_argument("--window", type=int, default=512, help="tokens a window of the perplexity")
    parser.add_argument("--windows", type=int, default=8, help="how many, from the start of the text")
    add_places(parser, "hywia", work="--cache", results="CSV file and the plot")
    options = parser.parse_args()
    check_least(parser, options, 1, "nsamples", "steps", "windows", "threads")
    check_least(parser, options, 2, "held_out")
    return settle_texts(options)


def load(options: argparse.Namespace) -> Study:
    """The model and its texts; nothing is measured yet."""
    check_texts(options)
    model, tokenizer = load_model(options)
    samples = load_seeds(options, model, tokenizer, options.nsamples + options.held_out)
    windows = pruneengine.evaluation_windows(options.evaluation, tokenizer, options.window, options.windows)
    options.cache.mkdir(parents=True, exist_ok=True)
    return Study(model, samples, windows, options.cache, options.held_out, options.steps)


def run(study: Study, chosen: list[Cell]) -> None:
    """Measure what is missing, a line a cell with the time that is left."""
    missing = [cell for cell in chosen if study.result(cell) is None]
    print(f"{len(chosen) - len(missing)} of {len(chosen)} cells are here, {len(missing)} to measure", flush=True)
    spent: dict[bool, list[float]] = {True: [], False: []}
    for number, cell in enumerate(missing, 1):
        start = time.perf_counter()
        if cell.method != DENSE:
            study.statistics(cell.seed)
        found = study.measure(cell)
        spent[_fitted(cell)].append(found["seconds"])
        left = sum(_expected(spent, _fitted(other)) for other in missing[number:])
        print(
            f"{number}/{len(missing)}  {cell}: perplexity {found['perplexity']:.2f}  "
            f"({time.perf_counter() - start:.0f} s; about {left / 60:.0f} min left)",
            flush=True,
        )


def _fitted(cell: Cell) -> bool:
    return cell.method == "hywia c"


def _expected(spent: dict[bool, list[float]], fitted: bool) -> float:
    """Seconds of a cell; a fit that was not timed yet is taken for ten perplexities."""
    known = spent[fitted] or [10 * second for second in spent[not fitted]]
    return statistics.mean(known)


def fusion_times(study: Study, seed: int) -> list[str]:
    """What blending costs beside the statistics it reads, a line a variant."""
    passes = list(study.pass_seconds())
    if not passes:
        return ["no statistics pass was timed in this folder"]
    base = statistics.median(passes)
    lines = []
    for variant in "abc":
        seconds = study.fusion_seconds(seed, variant)
        word = "met" if seconds <= FUSION_TARGET * base else "MISSED"
        lines.append(
            f"{word}: blending by variant {variant} takes {seconds * 1e3:.1f} ms, {seconds / base:.4%} of the "
            f"statistics pass ({base:.1f} s), target at most {FUSION_TARGET:.0%}"
        )
    return lines


def fit_times(study: Study, results: dict[Cell, dict[str, Any]]) -> list[str]:
    """What variant c costs before it can blend, beside the statistics pass."""
    fits, passes = [found["stages"]["fit"] for found in results.values() if "fit" in found], list(study.pass_seconds())
    if not fits or not passes:
        return []
    seconds, base = statistics.median(fits), statistics.median(passes)
    word = "met" if seconds <= FUSION_TARGET * base else "MISSED"
    return [f"{word}: the fit of variant c takes {seconds:.0f} s, {seconds / base:.0%} of the statistics pass"]


if __name__ == "__main__":
    main()
