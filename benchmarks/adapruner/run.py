"""AdaPruner against every fixed metric and random search: ``python -m benchmarks.adapruner.run --data DIR``.

For each ratio, shape and seed (of the calibration pool, the search text and the sampler) it runs a TPE search and a
random search with the same number of trials. It then measures the perplexity of both winners, and of the best fixed
metric, on text that no search saw. Studies and measurements are kept, so a stopped run continues where it was.
``--list`` shows which are missing, ``--plans DIR`` writes the winning plans. The results go to
``benchmarks/results/adapruner.csv`` and ``adapruner.json`` (the searches, without the losses of single blocks).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import pruneengine
from benchmarks.adapruner.cells import Bench, Cell
from benchmarks.adapruner.plans import write_plans
from benchmarks.adapruner.report import csv_lines, json_lines, summary, table
from benchmarks.common.options import add_places, check_texts, load_model, setting_of, settle_texts, study_parser
from pruneengine.bench.record import write_lines
from pruneengine.common.files import write_atomically
from pruneengine.common.progress import set_progress
from pruneengine.search.adapruner.config import FIXED_METRICS, AdaPrunerConfig


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    set_progress(True)
    cells = [
        Cell(ratio, shape, seed, sampler)
        for sampler in options.samplers
        for seed in options.seeds
        for shape in options.shapes
        for ratio in options.ratios
    ]
    try:
        bench = load(options)
    except (ValueError, OSError) as error:
        sys.exit(f"adapruner: {error}")
    if options.list:
        missing = [cell for cell in cells if bench.result(cell) is None]
        print(*missing, f"{len(missing)} of {len(cells)} cells are missing", sep="\n")
        return
    if options.plans is not None:
        print(*write_plans(bench, cells, options.plans), sep="\n")
        return
    for number, cell in enumerate(cells, 1):
        if bench.result(cell) is None and not options.known:
            print(f"{number}/{len(cells)}  {cell}", flush=True)
            bench.measure(cell)
    results = {cell: found for cell in cells if (found := bench.result(cell)) is not None}
    setting = setting_of(options, "torch", "transformers", "optuna")
    write_lines(options.results / "adapruner.csv", *csv_lines(results, bench.dense(), setting))
    write_atomically(options.results / "adapruner.json", json_lines(summary(results)))
    print(table(results, bench.dense()))


def arguments() -> argparse.Namespace:
    defaults = AdaPrunerConfig()
    parser = study_parser(
        __doc__, "c4/c4_demo.jsonl and wikitext2/*_docs.jsonl",
        calibration="text of the pool", search="text of the objective", evaluation="text of the report",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--shapes", nargs="+", choices=["uniform", "per-layer"], default=["per-layer"])
    parser.add_argument("--samplers", nargs="+", choices=["tpe", "random"], default=["tpe", "random"])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument(
        "--contenders", nargs="+", choices=FIXED_METRICS, metavar="METRIC",
        default=["energy", "wanda", "param_second", "param_first"],
        help="fixed metrics of every seed; the others, and compensation, are measured for seed 0 alone",
    )  # fmt: skip
    parser.add_argument("--pool", type=int, default=defaults.pool, help="calibration samples")
    parser.add_argument("--counts", default=",".join(map(str, defaults.counts)), help="sizes of subsets of them")
    parser.add_argument("--length", type=int, default=defaults.lengths[0], help="tokens a calibration sample")
    parser.add_argument("--window", type=int, default=defaults.seqlen, help="tokens a window of the objective")
    parser.add_argument("--windows", type=int, default=defaults.windows, help="of the objective, and held out")
    parser.add_argument("--report-window", type=int, default=512, help="tokens a window of the report")
    parser.add_argument("--report-windows", type=int, default=64, help="how many, from the start of the text")
    parser.add_argument("--known", action="store_true", help="write what is there and measure nothing")
    parser.add_argument("--plans", type=Path, metavar="DIR", help="write the measured cells' winning plans and stop")
    add_places(parser, "adapruner", work="--work", results="results")
    return settle_texts(parser.parse_args())


def load(options: argparse.Namespace) -> Bench:
    """The model and its texts; nothing is measured yet."""
    if options.search == options.evaluation:
        raise ValueError("the objective's text is the report's; give --data, or --search and --evaluation")
    check_texts(options)
    model, tokenizer = load_model(options)
    windows = pruneengine.evaluation_windows(
        options.evaluation, tokenizer, options.report_window, options.report_windows
    )
    config = AdaPrunerConfig(
        trials=options.trials, calibration=options.calibration, search_text=options.search,
        pool=options.pool, counts=options.counts, lengths=(options.length,),
        seqlen=options.window, windows=options.windows, held_out=options.windows,
    )  # fmt: skip
    options.work.mkdir(parents=True, exist_ok=True)
    return Bench(model, tokenizer, config, windows, options.work, tuple(options.contenders))


if __name__ == "__main__":
    main()
