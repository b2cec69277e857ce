"""The verb bench: the ops against eager torch and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pruneengine.cli.app import out
from pruneengine.cli.options.option import option


def bench(
    ops: Annotated[str | None, option("Names of ops, comma separated; see --list.", default="all")] = None,
    shapes: Annotated[str, option("Shapes: headline, llama-7b, smollm2 or ROWSxCOLUMNS.")] = "headline",
    dtype: Annotated[str, option("Dtype of the inputs: bfloat16, float16 or float32.")] = "bfloat16",
    device: Annotated[str, option("Device to compute on: cpu, cuda or cuda:N.")] = "cpu",
    providers: Annotated[
        str | None,
        option("Providers, comma separated: reference, compile, cpp, triton, cuda.", default="those of the device"),
    ] = None,
    rounds: Annotated[int, option("Number of timed rounds; slow providers take part in fewer.")] = 7,
    threads: Annotated[str, option("Numbers of CPU threads to time with, comma separated.")] = "1",
    results: Annotated[
        Path | None,
        option(
            "Folder to write ops.csv into.",
            metavar="DIR",
            default="benchmarks/results in a checkout, else pruneengine-bench",
        ),
    ] = None,
    show: Annotated[bool, option("Show the ops and their cases, and stop.", "--list")] = False,
) -> None:
    """Time the ops against eager torch and the machine's limits, each proved correct first."""
    from pruneengine.bench import runner

    if show:
        out.print(*runner.describe(), sep="\n")
        return
    options = runner.BenchOptions.parse(
        ops=ops, shapes=shapes, dtype=dtype, device=device, providers=providers,
        rounds=rounds, threads=threads, results=results,
    )  # fmt: skip
    raise typer.Exit(runner.run(options, say=out.print).exit_code)
