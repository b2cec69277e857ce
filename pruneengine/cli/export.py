"""The verb export: a checkpoint for runtimes that do not open it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pruneengine.cli.app import out
from pruneengine.cli.options.shared import Model, Trust


def export(
    model: Model,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    format: Annotated[
        str, typer.Option(help="Format: gguf (llama.cpp), deci (vLLM's DeciLM) or pad (zeros up to the widest layer).")
    ] = "gguf",
    dtype: Annotated[str, typer.Option(help="Dtype of the matrices of a GGUF file: float16 or float32.")] = "float16",
    proof: Annotated[bool, typer.Option(help="Read the result back and compare before it appears.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Write a checkpoint for llama.cpp, vLLM or any loader, and say what it was verified with."""
    from pruneengine.export import export as run

    made = run(
        model, out_dir, format, dtype=dtype, overwrite=overwrite, proof=proof, trust_remote_code=trust_remote_code
    )  # fmt: skip
    for line in made.written.verified:
        out.print(f"verified: {line}")
    for line in made.written.remarks:
        out.print(f"note: {line}")
    out.print(f"saved {made.path} ({made.bytes / 1e6:.1f} MB); open it with: {made.written.opens_with}")
