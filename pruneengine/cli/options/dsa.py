"""Command-line options of ``search --method dsa``."""

from __future__ import annotations

from typing import Annotated

from pruneengine.cli.options.option import DSA, option

Sparsity = Annotated[
    float | None,
    option("Fraction of the weights that become zero, of all linears but those of --ignore (--method dsa)."),
]
Pruner = Annotated[
    str | None,
    option("Method that chooses a layer's zeros: wanda, magnitude or sparsegpt.", default="wanda", panel=DSA),
]
PatternOption = Annotated[
    str | None,
    option(
        "Pattern of the zeros: unstructured, or N:M (N weights kept of every M).", "--pattern", default="unstructured",
        panel=DSA,
    ),
]  # fmt: skip
Population = Annotated[int | None, option("Number of best allocations kept as parents.", default=50, panel=DSA)]
Plateau = Annotated[
    str | None,
    option("Trials without a better one after which the search ends, or none for never.", default=300, panel=DSA),
]
Nsamples = Annotated[int | None, option("Number of calibration samples.", default=32, panel=DSA)]
CalibrationSeqlen = Annotated[int | None, option("Tokens per calibration sample.", default=128, panel=DSA)]
TotalWindows = Annotated[
    int | None,
    option("Number of windows of the objective in all, held-out ones included.", default=50, panel=DSA),
]
HeldOutShare = Annotated[
    float | None, option("Share of the windows that only finalists see, 0 to 1.", default=0.2, panel=DSA)
]
Correlate = Annotated[
    int | None,
    option(
        "Number of allocations on which the rank correlation of fast and full losses is computed; 0 for none.",
        default=20, panel=DSA,
    ),
]  # fmt: skip
Ignore = Annotated[
    str | None,
    option("Linears that stay dense, as of prune: down_proj,re:layers\\.0\\.", default="none", panel=DSA,
           metavar="NAMES"),
]  # fmt: skip
Mode = Annotated[
    str | None,
    option("Statistics of the final prunes: sequential, two-pass or one-shot.", default="sequential", panel=DSA),
]
