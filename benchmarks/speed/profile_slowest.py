"""One op between the profiler's start and stop: the case of ``ops.csv`` with the lowest share, or ``--case TITLE``.

``ncu --profile-from-start off python -m benchmarks.speed.profile_slowest`` then sees the kernels of that op alone.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pruneengine.bench.case import Case, Inputs
from pruneengine.bench.cases import CASES
from pruneengine.bench.environment import RESULTS
from pruneengine.bench.providers import OURS
from pruneengine.bench.record import read
from pruneengine.bench.shapes import SETS
from pruneengine.ops import use_backend


def slowest(lines: Sequence[Mapping[str, str]]) -> tuple[Case, str]:
    """The case and backend of ours with the lowest share of its limit on a GPU's headline shapes.

    Raises:
        ValueError: no GPU was measured.
    """
    cases = {(case.op, case.name): case for case in CASES if not case.graph}
    shares = [
        (float(line["median"]), line["provider"], cases[line["op"], line["variant"]])
        for line in lines
        if line["on"] == "cuda" and line["quantity"] == "share" and line["provider"] in OURS
        if (line["op"], line["variant"]) in cases
    ]
    if not shares:
        raise ValueError("ops.csv holds no share of ours on a GPU: run `pruneengine bench --device cuda` first")
    _, provider, case = min(shares, key=lambda share: share[0])
    return case, provider


def titled(title: str) -> Case:
    """The case that the benchmark prints so.

    Raises:
        ValueError: none is.
    """
    cases = {case.title: case for case in CASES}
    if title not in cases:
        near = difflib.get_close_matches(title, cases, n=3, cutoff=0.5) or cases
        raise ValueError(f"unknown case {title!r}; choose from {', '.join(map(repr, near))}")
    return cases[title]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of ops.csv")
    parser.add_argument("--case", help="a title as the benchmark prints it, e.g. 'weight_scores: |W|'")
    parser.add_argument("--provider", default="triton", help="of --case (default: triton)")
    options = parser.parse_args()
    try:
        if options.case is None:
            case, provider = slowest(read(options.results / "ops.csv"))
        else:
            case, provider = titled(options.case), options.provider
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{case.title} with {provider}")
    shape = SETS["headline"].of_kind(case.kind)[0]
    work = case.make(Inputs(torch.device("cuda"), torch.bfloat16), shape)
    with use_backend(provider):
        work.ours(*work.inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        work.ours(*work.inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
