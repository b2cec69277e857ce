"""Sparse pruning of SmolLM2-135M against other libraries: ``python -m benchmarks.sparse.peers``.

Wanda and SparseGPT, to 50% and to 2:4, on the same calibration tokens, by four providers: pruneengine in its default
mode and in the published order (two passes per layer), the published loops on today's transformers, and llm-compressor
in its own environment (``--setup`` creates it). First every provider prunes once and the choices are compared: in the
same order they must be the same weights up to ties. Then they prune fresh copies in turn. A provider that is missing or
fails is a row with its reason. The results go to ``benchmarks/results/sparse_peers.csv`` as each work is done.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import nn

import pruneengine
from benchmarks.common.models import smollm2
from benchmarks.sparse.gate import gate
from benchmarks.sparse.providers import COMPRESSOR, LOADED, LOOP, OURS, PRUNE, Panel, Work, panel, setup
from pruneengine.bench.environment import RESULTS
from pruneengine.bench.record import GateError, Row, Setting, record
from pruneengine.bench.timing import interleave

WORKS = {
    "wanda-50": Work("wanda", "unstructured", {LOOP: 4, COMPRESSOR: 10}),
    "wanda-2:4": Work("wanda", "2:4", {LOOP: 4, COMPRESSOR: 10}),
    "sparsegpt-50": Work("sparsegpt", "unstructured", {LOOP: 1.5}),
    "sparsegpt-2:4": Work("sparsegpt", "2:4", {LOOP: 1.5}),
}
PEERS = (LOOP, COMPRESSOR)
OTHERWISE = "chosen otherwise"
# quantity: that of a peer as a multiple of pruneengine's in the same round
TIMES = {quantity: f"{quantity}, times {OURS}'s" for quantity in (PRUNE, LOADED)}


def main() -> None:
    options = arguments()
    if options.setup:
        setup()
    model, tokenizer = smollm2()
    samples = pruneengine.load_samples("builtin", tokenizer, options.samples, options.length, model=model)
    works = {name: work for name, work in WORKS.items() if name in options.only} or WORKS
    peers = [name for name in PEERS if name in options.only] or PEERS
    setting = Setting.here("sparse_peers", options.threads)
    try:
        with panel(model, tokenizer, samples.tokens, options.batch_size, options.threads, peers) as everyone:
            for name, work in works.items():
                case = f"SmolLM2-135M {name} {options.samples}x{options.length}"
                rows = measure(case, work, model, everyone, options.rounds, setting)
                print(table(rows, work), flush=True)
                record(rows, options.results)
    except GateError as error:
        sys.exit(f"sparse_peers: {error}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    known = (*WORKS, *PEERS)
    add("--only", action="append", default=[], choices=known, help="this work or this peer alone; may be repeated")
    add("--samples", type=int, default=8, help="of the calibration text")
    add("--length", type=int, default=128, help="tokens a sample")
    add("--batch-size", type=int, default=8, help="pruneengine's; the peers take one sample at a time, as they do")
    add("--rounds", type=int, default=3, help="timed prunes of everyone")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of torch")
    add("--results", type=Path, default=RESULTS, help="folder of the CSV file")
    add("--setup", action="store_true", help="create llm-compressor's environment first")
    options = parser.parse_args()
    for name in ("samples", "length", "batch_size", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    return options


def measure(case: str, work: Work, dense: nn.Module, panel: Panel, rounds: int, setting: Setting) -> list[Row]:
    """Gate, then rows of the seconds of everyone who takes part and of how many times pruneengine's they are."""
    different = gate(work, dense, panel)
    timed = [name for name in panel.taking_part(work) if name in panel.timed]
    values = interleave({name: partial(_seconds, panel, name, work) for name in timed}, rounds, warmup=0)
    rows = []
    for name in timed:
        if name in panel.failed:
            continue
        row = partial(setting.row, case, name, versions=panel.providers[name].versions)
        rows += [row(quantity, "s", values=taken) for quantity, taken in values[name].items()]
        if name in different:
            rows.append(row(OTHERWISE, "weights", values=[different[name]]))
        for quantity, times in TIMES.items() if name != OURS else ():
            if taken := values[name].get(quantity):
                ours = values[OURS][quantity]
                rows.append(row(times, "ratio", values=[one / other for one, other in zip(taken, ours, strict=True)]))
    failed = {name: reason for name, reason in panel.failed.items() if name in work.faster}
    return rows + [_failure(setting, case, name, reason) for name, reason in failed.items()]


def _seconds(panel: Panel, name: str, work: Work) -> dict[str, float]:
    outcome = panel.prune(name, work)
    return {} if outcome is None else outcome.seconds


def _failure(setting: Setting, case: str, name: str, reason: str) -> Row:
    return Row(
        case=case, provider=name, quantity=PRUNE, unit="s", median=math.nan, p20=math.nan, p80=math.nan, rounds=0,
        versions=" ".join(f"failed: {reason}".split()), **asdict(setting),
    )  # fmt: skip


def table(rows: Sequence[Row], work: Work) -> str:
    """A line for everyone: seconds, how many times pruneengine's, and whether that is what was promised."""
    of = {(row.provider, row.quantity): row for row in rows}
    lines = [(rows[0].case, "prune s", "20% - 80%", "with loading", "times ours", "target", "")]
    for name in dict.fromkeys(row.provider for row in rows):
        row, loaded, times = (of.get((name, quantity)) for quantity in (PRUNE, LOADED, TIMES[PRUNE]))
        target = work.faster.get(name)
        verdict = "" if target is None or times is None else "met" if times.median >= target else "MISSED"
        lines.append(
            (
                name,
                f"{row.median:.2f}",
                f"{row.p20:.2f} - {row.p80:.2f}",
                f"{loaded.median:.2f}" if loaded else "",
                f"{times.median:.2f}" if times else "",
                f">= {target:g}" if target else "",
                verdict if row.rounds else row.versions,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    main()
