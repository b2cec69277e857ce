"""The speed and memory comparisons: ``python benchmarks/run.py [peers] [statistics] [memory]``, all by default.

Each theme first proves that what it measures computes the same thing, then measures the providers in turn. The medians
go to ``benchmarks/results/<theme>.csv``; a second run of the same commit on the same day replaces the first one's rows.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.compare import table, verdicts
from pruneengine.bench.here import RESULTS
from pruneengine.bench.record import GateError, record

# theme: (module, rounds). A module has measure(rounds, threads) -> rows, the provider BASE and TARGETS.
THEMES = {
    "peers": ("benchmarks.peers", 7),
    "statistics": ("benchmarks.statistics_pass", 3),
    "memory": ("benchmarks.memory", 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="*", metavar="theme", help=f"{', '.join(THEMES)}; all where none is named")
    parser.add_argument("--rounds", type=int, help="timed rounds of every provider (default: the theme's own)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of torch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--setup", action="store_true", help="create the peers' environment first")
    options = parser.parse_args()
    if unknown := set(options.themes) - THEMES.keys():
        parser.error(f"unknown theme {sorted(unknown)[0]!r}; choose from {', '.join(THEMES)}")
    for name in ("rounds", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if options.setup:
        importlib.import_module("benchmarks.peers").setup()
    for theme in options.themes or THEMES:
        name, rounds = THEMES[theme]
        module = importlib.import_module(name)
        try:
            rows = module.measure(options.rounds or rounds, options.threads)
        except (GateError, FileNotFoundError) as error:
            sys.exit(f"{theme}: {error}")
        print(f"\n{theme}: {(module.__doc__ or '').splitlines()[0]}\n")
        print(table(rows, module.BASE), *verdicts(rows, module.TARGETS), sep="\n")
        for path in record(rows, options.results):
            print(f"written: {path}")


if __name__ == "__main__":
    main()
