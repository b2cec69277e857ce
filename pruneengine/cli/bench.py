"""The verb bench: the ops against eager torch and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pruneengine.cli.app import out


def bench(
    ops: Annotated[str | None, typer.Option(help="Names of ops, comma separated; see --list. \\[default: all]")] = None,
    shapes: Annotated[str, typer.Option(help="Shapes: headline, llama-7b, smollm2 or ROWSxCOLUMNS.")] = "headline",
    dtype: Annotated[str, typer.Option(help="Dtype of the inputs: bfloat16, float16 or float32.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="Device to compute on: cpu, cuda or cuda:N.")] = "cpu",
    providers: Annotated[
        str | None,
        typer.Option(help="Providers, comma separated: reference,compile,cpp,triton,cuda. \\[default: the device's]"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Number of timed rounds; slow providers take part in fewer.")] = 7,
    threads: Annotated[str, typer.Option(help="Number of CPU threads, several comma separated.")] = "1",
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write ops.csv into. \\[default: none]")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the ops and their cases, and stop.")] = False,
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
