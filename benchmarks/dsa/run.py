"""Search for an allocation function, by evolution and at random: ``python -m benchmarks.dsa.run --data DIR``.

One search per pruner, sparsity, sampler and seed, all with the same number of trials. The searched text is WikiText-2's
validation part (a fifth of its windows held out), the calibration text C4. A stopped study continues where it was, and
``--list`` shows which searches are missing. The results go to ``benchmarks/results/dsa.csv`` (one line per search) and
``dsa.json`` (finalists, correlation, seconds, and the best loss by trial). The functions that were found go to
``benchmarks/results/functions/``, for ``python -m benchmarks.sparse.run --function``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.options import add_places, check_texts, load_model, setting_of, settle_texts, study_parser
from benchmarks.dsa.cells import Bench, Cell
from pruneengine.bench.record import read, write_lines
from pruneengine.common.files import write_atomically
from pruneengine.common.progress import set_progress
from pruneengine.search.dsa.config import DSA_SAMPLERS, PRUNERS, DsaConfig
from pruneengine.sparse.functions.function import Function


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    set_progress(True)
    cells = [
        Cell(pruner, sparsity, sampler, seed)
        for seed in options.seeds
        for pruner in options.pruners
        for sparsity in options.sparsities
        for sampler in options.samplers
    ]
    try:
        bench = load(options)
    except (ValueError, OSError) as error:
        sys.exit(f"dsa: {error}")
    missing = [cell for cell in cells if bench.result(cell) is None]
    if options.list:
        print(*missing, f"{len(missing)} of {len(cells)} searches are missing", sep="\n")
        return
    for cell in () if options.known else missing:
        print(cell, flush=True)
        bench.measure(cell)
    results = {cell: placeless(found) for cell in cells if (found := bench.result(cell)) is not None}
    setting = setting_of(options, "torch", "transformers", "optuna")
    lines = [line(cell, found) | {"commit": found["commit"]} | setting for cell, found in results.items()]
    for cell, found in results.items():
        if "function" in found:
            path = options.results / "functions" / f"{cell}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            Function.from_dict(found["function"]["fields"]).save(path, found["function"]["metadata"])
    if lines:
        kept = {str(cell): {k: v for k, v in found.items() if k != "trials"} for cell, found in results.items()}
        write(options.results, lines, kept)
    for each in lines:
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in each.items()))


def write(folder: Path, lines: list[dict[str, Any]], details: dict[str, Any]) -> None:
    """``dsa.csv`` and ``dsa.json``; searches that are there and were not asked for stay."""
    table, more = folder / "dsa.csv", folder / "dsa.json"
    asked = {_place(line) for line in lines}
    others = [line for line in (read(table) if table.exists() else []) if _place(line) not in asked]
    write_lines(table, sorted([*others, *lines], key=_place), list(lines[0]))
    known = json.loads(more.read_text()) if more.exists() else {}
    write_atomically(more, json.dumps(known | details, indent=1) + "\n")


def _place(line: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(line[name]) for name in ("pruner", "sparsity", "sampler", "seed"))


def placeless(found: dict[str, Any]) -> dict[str, Any]:
    """What was found, with the names of texts in place of where they lay."""
    config = found["config"]
    named = {name: Path(config[name]).name for name in ("calibration", "search_text")}
    if "function" in found:
        found["function"]["metadata"]["search text"] = named["search_text"]
    return found | {"config": config | named}


def line(cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
    """A search in one line: losses are above the dense model's, nats a token; seconds are wall time."""
    seconds, best = found["seconds"], found["best"]
    fixed = {row["name"]: row for row in found["finalists"] if not row["name"].startswith("trial")}
    return {
        "pruner": cell.pruner,
        "sparsity": cell.sparsity,
        "sampler": cell.sampler,
        "seed": cell.seed,
        **found["counts"],
        "plateau": found["plateau"] or "",
        "winner": best["name"],
        "function": best["function"] or "",
        "full loss": best["value"],
        "held-out loss": best["held_out"],
        **{f"{name} held-out": row["held_out"] for name, row in sorted(fixed.items())},
        "spearman": found["correlation"]["spearman"],
        "trials s": found["trials_seconds"],
        "scoring s": seconds.get("trials: score", 0.0),
        "finals s": seconds["finalists"],
    }


def arguments() -> argparse.Namespace:
    parser = study_parser(
        __doc__, "c4/c4_demo.jsonl and wikitext2/validation_docs.jsonl",
        calibration="text of the statistics", search="text of the objective",
    )  # fmt: skip
    parser.add_argument("--pruners", nargs="+", choices=PRUNERS, default=["wanda"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.6])
    parser.add_argument("--samplers", nargs="+", choices=DSA_SAMPLERS, default=list(DSA_SAMPLERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the texts and the sampler")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--plateau", type=int, default=0, help="trials without a better one that end it; 0 for never")
    parser.add_argument(
        "--correlate", type=int, default=20, help="allocations that fast and full losses are compared on; 0 for none"
    )
    parser.add_argument("--window", type=int, default=128, help="tokens a window of the objective")
    parser.add_argument("--windows", type=int, default=40, help="of the objective; a fifth is held out")
    parser.add_argument("--nsamples", type=int, default=32, help="calibration samples")
    parser.add_argument("--seqlen", type=int, default=128, help="tokens a calibration sample")
    parser.add_argument("--known", action="store_true", help="write what is there and search nothing")
    add_places(parser, "dsa", work="--work", results="results", cells="searches")
    return settle_texts(parser.parse_args())


def load(options: argparse.Namespace) -> Bench:
    """The model and what all searches share; nothing is measured yet."""
    check_texts(options)
    model, tokenizer = load_model(options)
    config = DsaConfig(
        sparsity=options.sparsities[0], trials=options.trials, plateau=options.plateau or None,
        correlate=options.correlate,
        search_text=options.search, seqlen=options.window, windows=options.windows,
        calibration=options.calibration, nsamples=options.nsamples, calibration_seqlen=options.seqlen,
    )  # fmt: skip
    options.work.mkdir(parents=True, exist_ok=True)
    return Bench(model, tokenizer, config, options.work)


if __name__ == "__main__":
    main()
