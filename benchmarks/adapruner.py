"""The search against every fixed metric and against random search: ``python benchmarks/adapruner.py --data DIR``.

For each ratio, shape and seed (of the calibration pool, the search text and the sampler): a TPE search and a random
one with as many trials, then the perplexity of what they found, and of the best fixed metric, on text that no search
saw. Studies and measurements are kept, so that a run that was stopped goes on where it was; ``--list`` shows what is
missing, ``--plans DIR`` writes the plans that were found. The results go to ``benchmarks/results/adapruner.csv`` and
``adapruner.json`` (the searches, but for the losses of single blocks).
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import pruneengine
from benchmarks.adapruner_cells import Bench, Cell
from benchmarks.adapruner_plans import write_plans
from benchmarks.adapruner_report import csv_lines, json_lines, summary, table
from benchmarks.models import smollm2
from pruneengine.bench.here import RESULTS, ROOT, cpu_name, versions
from pruneengine.bench.record import write_lines
from pruneengine.files import write_atomically
from pruneengine.progress import set_progress
from pruneengine.search.config import FIXED, SearchConfig


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
    setting = {
        "device": cpu_name(), "threads": str(options.threads),
        "versions": versions("torch", "transformers", "optuna"), "date": date.today().isoformat(),
    }  # fmt: skip
    write_lines(options.results / "adapruner.csv", *csv_lines(results, bench.dense(), setting))
    write_atomically(options.results / "adapruner.json", json_lines(summary(results)))
    print(table(results, bench.dense()))


def arguments() -> argparse.Namespace:
    defaults = SearchConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with c4/c4_demo.jsonl and wikitext2/*_docs.jsonl")
    parser.add_argument("--calibration", help="text of the pool (default: of DATA, else c4 from the hub)")
    parser.add_argument("--search", help="text of the objective (default: of DATA, else wikitext2 from the hub)")
    parser.add_argument("--evaluation", help="text of the report (default: of DATA, else wikitext2 from the hub)")
    parser.add_argument("--model", help="folder, GGUF file or hub name (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--shapes", nargs="+", choices=["uniform", "per-layer"], default=["per-layer"])
    parser.add_argument("--samplers", nargs="+", choices=["tpe", "random"], default=["tpe", "random"])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument(
        "--contenders", nargs="+", choices=FIXED, metavar="METRIC",
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
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "adapruner", help="folder of the studies")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--known", action="store_true", help="write what is there and measure nothing")
    parser.add_argument("--list", action="store_true", help="print the missing cells and stop")
    parser.add_argument("--plans", type=Path, metavar="DIR", help="write the measured cells' winning plans and stop")
    options = parser.parse_args()
    given = options.data
    options.calibration = options.calibration or (str(given / "c4" / "c4_demo.jsonl") if given else "c4")
    options.search = options.search or (str(given / "wikitext2" / "validation_docs.jsonl") if given else "wikitext2")
    options.evaluation = options.evaluation or (str(given / "wikitext2" / "test_docs.jsonl") if given else "wikitext2")
    return options


def load(options: argparse.Namespace) -> Bench:
    """The model and its texts; nothing is measured yet."""
    if options.search == options.evaluation:
        raise ValueError("the objective's text is the report's; give --data, or --search and --evaluation")
    for spec in (options.calibration, options.search, options.evaluation):
        pruneengine.data.check_spec(spec, None, default=1)
    model, tokenizer = pruneengine.load(options.model) if options.model else smollm2()
    windows = pruneengine.evaluation_windows(
        options.evaluation, tokenizer, options.report_window, options.report_windows
    )
    config = SearchConfig(
        trials=options.trials, calibration=options.calibration, search_text=options.search,
        pool=options.pool, counts=options.counts, lengths=(options.length,),
        seqlen=options.window, windows=options.windows, held_out=options.windows,
    )  # fmt: skip
    options.work.mkdir(parents=True, exist_ok=True)
    return Bench(model, tokenizer, config, windows, options.work, tuple(options.contenders))


if __name__ == "__main__":
    main()
