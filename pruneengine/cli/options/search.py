"""Command-line options of search: of both methods, and of ``--method adapruner``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pruneengine.cli.options.option import ADAPRUNER, EVALUATION, SEARCH, option

Out = Annotated[Path, option("Folder of the checkpoint.", "--out", metavar="DIR")]
Ratio = Annotated[
    float | None,
    option("Fraction of the prunable parameters to remove, between 0 and 1 (--method adapruner)."),
]
Method = Annotated[
    str, option("Search: adapruner (plans of structured pruning) or dsa (allocation functions of sparse pruning).")
]
Trials = Annotated[int | None, option("Number of candidates to evaluate.", default="100; dsa: 2000")]
Calibration = Annotated[
    str | None,
    option(
        "Calibration text of the pool (adapruner) or of the statistics (dsa), as of prune.", default="builtin",
        metavar="SPEC",
    ),
]  # fmt: skip
SearchText = Annotated[str | None, option("Text of the objective.", "--eval", default="builtin-eval", metavar="SPEC")]
Seqlen = Annotated[int | None, option("Tokens per window of the objective.", default="256; dsa: 128", panel=SEARCH)]
Sampler = Annotated[
    str | None,
    option("Sampler of candidates: tpe or random; dsa: evolution or random.", default="tpe; dsa: evolution",
           panel=SEARCH),
]  # fmt: skip
Stop = Annotated[
    str | None,
    option(
        "p-value at which a trial that is worse than the best one is stopped early, or none to run all to the end.",
        default=0.1, panel=SEARCH,
    ),
]  # fmt: skip
Finalists = Annotated[
    int | None,
    option("Number of best trials compared again on the held-out windows.", default=5, panel=SEARCH),
]
Seed = Annotated[
    int | None,
    option("Random seed for the texts, the sampler and random subsets.", default=0, panel=SEARCH),
]
Study = Annotated[str | None, option("Name of the Optuna study.", default="the method", panel=SEARCH, metavar="NAME")]
Storage = Annotated[
    str | None,
    option(
        "Storage of the study: journal:FILE or a database URL.", default="a journal in the folder OUT-search",
        panel=SEARCH, metavar="URL",
    ),
]  # fmt: skip
Workers = Annotated[int, option("Number of processes on this study.", panel=SEARCH)]
TimeLimit = Annotated[float | None, option("Seconds after which no trial is begun.", default="no limit", panel=SEARCH)]

Windows = Annotated[
    int | None,
    option(
        "Number of windows of the objective that trials see, held-out ones apart.", default=16, panel=ADAPRUNER,
    ),
]  # fmt: skip
HeldOutWindows = Annotated[
    int | None, option("Number of further windows that only finalists see.", default=16, panel=ADAPRUNER)
]
# Stands for --held-out-windows or --held-out-share, by the method.
HeldOut = Annotated[float | None, option("Former name of --held-out-windows and --held-out-share.", hidden=True)]
Pool = Annotated[
    int | None, option("Number of calibration samples in the pool, of each length.", default=128, panel=ADAPRUNER)
]
Lengths = Annotated[
    str | None,
    option("Tokens per calibration sample, several lengths comma separated.", default=128, panel=ADAPRUNER),
]
Counts = Annotated[
    str | None,
    option(
        "Sizes of the pool's subsets in samples, comma separated, besides the whole pool.",
        default="an eighth, a quarter and a half of the pool", panel=ADAPRUNER,
    ),
]  # fmt: skip
Selectors = Annotated[
    str | None,
    option(
        "Ways to draw a subset from the pool, comma separated: random-K, low-loss, middle-loss, high-loss, diverse.",
        default="random-0,random-1,low-loss,middle-loss,high-loss,diverse", panel=ADAPRUNER,
    ),
]  # fmt: skip
Compensate = Annotated[
    str | None,
    option(
        "Compensations that the winner may get, comma separated: none, bias, least-squares.",
        default="none,least-squares", panel=ADAPRUNER,
    ),
]  # fmt: skip
Together = Annotated[int | None, option("Number of candidates that share a forward pass.", default=1, panel=ADAPRUNER)]

ReportText = Annotated[
    str | None,
    option("Text of the report, which is never searched on; none measures no perplexity.", default="none",
           panel=EVALUATION, metavar="SPEC"),
]  # fmt: skip
ReportWindows = Annotated[int | None, option("Number of evaluation windows.", panel=EVALUATION)]
