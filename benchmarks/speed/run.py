"""Comparisons of speed and memory: ``python -m benchmarks.speed.run [ops] [peers] [statistics] [memory]``.

Without a theme, all are run. Each theme first proves that what it measures computes the same thing, then measures the
providers in turn. The medians go to ``benchmarks/results/<theme>.csv``. A second run of the same commit on the same day
replaces the rows of the first.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from pathlib import Path

from benchmarks.speed import ops
from benchmarks.speed.compare import table, verdicts
from pruneengine.bench.environment import RESULTS
from pruneengine.bench.record import GateError, record

# theme: (module, rounds). A module has measure(rounds, threads) -> rows, the provider BASE and TARGETS.
THEMES = {
    "peers": ("benchmarks.speed.peers", 7),
    "statistics": ("benchmarks.speed.statistics_pass", 3),
    "memory": ("benchmarks.speed.memory", 3),
}


def main() -> None:
    options = arguments()
    if options.setup:
        importlib.import_module("benchmarks.speed.peers").setup()
    status = 0
    for theme in options.themes:
        if theme == "ops":
            status = ops.bench(options)
        else:
            compare(theme, options)
    sys.exit(status)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ("ops", *THEMES)
    parser.add_argument("themes", nargs="*", metavar="theme", help=f"{', '.join(known)}; all where none is named")
    parser.add_argument("--rounds", type=int, help="timed rounds of every provider (default: the theme's own)")
    parser.add_argument("--threads", help="CPU threads of torch (default: all; of ops 1, and 1,2 measures both)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--setup", action="store_true", help="create the peers' environment first")
    ops.add_arguments(parser)
    options = parser.parse_args()
    if unknown := set(options.themes) - set(known):
        parser.error(f"unknown theme {sorted(unknown)[0]!r}; choose from {', '.join(known)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.threads or "1"):
        parser.error(f"--threads must be at least 1, got {options.threads}")
    of_ops = [f"--{name}" for name in (*ops.FLAGS, "list") if getattr(options, name) not in (None, False)]
    options.themes = options.themes or (["ops"] if of_ops else list(known))
    if of_ops and (others := set(options.themes) - {"ops"}):
        parser.error(f"{of_ops[0]} is for ops alone; not for {', '.join(sorted(others))}")
    if "," in (options.threads or "") and options.themes != ["ops"]:
        parser.error(f"--threads {options.threads}: only ops takes several")
    return options


def compare(theme: str, options: argparse.Namespace) -> None:
    name, rounds = THEMES[theme]
    module = importlib.import_module(name)
    threads = int(options.threads or len(os.sched_getaffinity(0)))
    try:
        rows = module.measure(options.rounds or rounds, threads)
    except (GateError, FileNotFoundError) as error:
        sys.exit(f"{theme}: {error}")
    print(f"\n{theme}: {(module.__doc__ or '').splitlines()[0]}\n")
    print(table(rows, module.BASE), *verdicts(rows, module.TARGETS), sep="\n")
    for path in record(rows, options.results):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
