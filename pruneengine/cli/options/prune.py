"""Command-line options of prune, structured and sparse: method, calibration text and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pruneengine.cli.options.option import CALIBRATION, EVALUATION, option

Out = Annotated[Path | None, option("Folder of the checkpoint.", "--out", metavar="DIR")]
Method = Annotated[
    str | None,
    option(
        "Importance metric: param_first, vectorize, hywia, wanda, ...; sparse: wanda, magnitude, sparsegpt.",
        default="param_first; sparse: wanda",
    ),
]
Allocation = Annotated[
    str | None,
    option(
        "Spread over the layers: uniform, global or unstructured; sparse: uniform, global, er, er-plus, owl, dsa, a "
        "function, a file, ...", default="uniform",
    ),
]  # fmt: skip
DryRun = Annotated[bool, option("Print the plan and stop, without --out.", "--dry-run")]

Calibration = Annotated[
    str | None,
    option(
        "Calibration text: builtin, self (sampled from the model), a hub data set such as c4, a file, a folder, - for "
        "standard input, or a mix a:64,b:64.",
        default="builtin", metavar="SPEC",
    ),
]  # fmt: skip
Nsamples = Annotated[
    int | None,
    option("Number of calibration samples.", default="the counts in --calibration, or 32"),
]
Seqlen = Annotated[int | None, option("Tokens per calibration sample.", default=128)]
Pack = Annotated[
    bool | None,
    option(
        "Join short documents into samples (pack), or take samples from long ones alone (crop).", "--pack/--crop",
        default="pack", panel=CALIBRATION,
    ),
]  # fmt: skip
BatchSize = Annotated[
    int | None,
    option("Calibration samples per forward pass.", default=8, panel=CALIBRATION),
]
Seed = Annotated[
    int | None,
    option("Random seed for sampling, the random metric and the HyWIA fit.", default=0, panel=CALIBRATION),
]
StatisticsFile = Annotated[
    Path | None,
    option("File to reuse calibration statistics from, or to keep them in.", default="none", panel=CALIBRATION,
           metavar="FILE"),
]  # fmt: skip

EvalText = Annotated[
    str,
    option("Text of the perplexity before and after, or none to measure none.", panel=EVALUATION, metavar="SPEC"),
]
Speed = Annotated[
    bool,
    option("Measure tokens per second, dense and pruned (keeps a dense copy in memory).", "--speed", panel=EVALUATION),
]
Prompt = Annotated[
    str | None, option("Prompt that the reloaded checkpoint continues.", default="none", panel=EVALUATION)
]
