"""The options of search that belong to ``--method dsa``, and what it prints."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

PANEL = "Allocation functions (--method dsa)"


_option = partial(typer.Option, rich_help_panel=PANEL)
Sparsity = Annotated[
    float | None, _option(help="Fraction of the weights that become zero, of all linears but those of --ignore.")
]
Pruner = Annotated[str | None, _option(help="wanda, magnitude or sparsegpt (wanda).")]
PatternOption = Annotated[str | None, _option("--pattern", help="unstructured, or N:M: N weights kept of every M.")]
Population = Annotated[int | None, _option(help="The best so many allocations are parents (50).")]
Plateau = Annotated[str | None, _option(help="Trials without a better one that end the search (300), or none.")]
Nsamples = Annotated[int | None, _option(help="Calibration samples (32).")]
CalibrationSeqlen = Annotated[int | None, _option(help="Tokens a calibration sample (128).")]
Correlate = Annotated[int | None, _option(help="Allocations that fast and full losses are compared on (20); 0: none.")]
Ignore = Annotated[
    str | None, _option(metavar="NAMES", help="Linears that stay dense, as of prune: down_proj,re:layers\\.0\\.")
]
Mode = Annotated[str | None, _option(help="Of the final prunes: sequential, two-pass or one-shot (sequential).")]
