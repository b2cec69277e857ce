"""Command-line options that most verbs share: model, dtypes, device, evaluation text and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pruneengine.cli.options.option import EVALUATION, OUTPUT, option

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a GGUF file, or a hub name.")]
Dtype = Annotated[str, option("Dtype of the weights in memory and on disk: float32, bfloat16 or float16.")]
ComputeDtype = Annotated[
    str | None,
    option(
        "Dtype in which float32 weights are measured, searched and trained: float32, bfloat16, float16, or auto (the "
        "fastest here).",
        default="--dtype", panel=EVALUATION,
    ),
]  # fmt: skip
Device = Annotated[str, option("Device to compute on: cpu, cuda, cuda:1, ...")]
Trust = Annotated[bool, option("Run modelling code that comes with the model.", "--trust-remote-code", panel=OUTPUT)]
Recipe = Annotated[Path | None, option("YAML file of these options; options on the command line win.")]
EvalSeqlen = Annotated[int, option("Tokens per evaluation window.", panel=EVALUATION)]
EvalWindows = Annotated[
    int | None,
    option("Number of evaluation windows.", default="the counts in --eval-text, or 16", panel=EVALUATION),
]
Proof = Annotated[bool, option("Reopen the checkpoint in a fresh process and compare its logits.", panel=OUTPUT)]
Overwrite = Annotated[
    bool, option("Replace an earlier result of pruneengine in --out, and nothing else.", "--overwrite")
]
