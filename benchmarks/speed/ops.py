"""Theme of the ops: timed against eager torch and the machine's limits, as ``pruneengine bench`` does."""

from __future__ import annotations

import argparse

from pruneengine.bench.runner import BenchOptions, describe, run
from pruneengine.bench.shapes import SETS

FLAGS = ("ops", "shapes", "dtype", "device", "providers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this theme; any of them chooses it."""
    flags = parser.add_argument_group("the theme ops")
    flags.add_argument("--ops", help="names, comma separated (default: all; see --list)")
    flags.add_argument("--shapes", help=f"{', '.join(SETS)} or ROWSxCOLUMNS, comma separated (default: headline)")
    flags.add_argument("--dtype", help="bfloat16 (default), float16 or float32")
    flags.add_argument("--device", help="cpu (default), cuda or cuda:N")
    flags.add_argument("--providers", help="of reference,compile,cpp,triton,cuda (default: the device's)")
    flags.add_argument("--list", action="store_true", help="show the ops and their cases, and stop")


def bench(options: argparse.Namespace) -> int:
    """Run, and return the exit status."""
    if options.list:
        print(*describe(), sep="\n")
        return 0
    given = {name: getattr(options, name) for name in (*FLAGS, "rounds", "threads")}
    try:
        return run(BenchOptions.parse(**given, results=options.results)).exit_code
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}")
        return 2
