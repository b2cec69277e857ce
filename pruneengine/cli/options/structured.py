"""Command-line options of structured pruning and of HyWIA."""

from __future__ import annotations

from typing import Annotated

from pruneengine.cli.options.option import HYWIA, STRUCTURED, option

Ratio = Annotated[
    float | None,
    option("Fraction of the prunable parameters to remove, between 0 and 1; asks for structured pruning."),
]
Kinds = Annotated[
    str | None,
    option("Kinds of units to remove, comma separated: heads, mlp, layers, experts.", default="heads,mlp",
           panel=STRUCTURED),
]  # fmt: skip
SearchedKinds = Annotated[
    str | None,
    option("Kinds of units to remove, comma separated: heads, mlp.", default="heads,mlp", panel=STRUCTURED),
]
# The former name of --kinds.
Structure = Annotated[str | None, option("Former name of --kinds.", hidden=True)]
Shape = Annotated[
    str | None,
    option(
        "Widths of the layers: uniform (the same in every layer; loads anywhere) or per-layer (needs the modelling "
        "file that is saved with it).", default="uniform, or per-layer where --layers or --protocol need it",
        panel=STRUCTURED,
    ),
]  # fmt: skip
SearchedShape = Annotated[
    str | None,
    option("Widths of the layers: uniform (the same in every layer) or per-layer.", default="uniform",
           panel=STRUCTURED),
]  # fmt: skip
Layers = Annotated[
    str | None,
    option("Only layers A to B-1 may change.", default="all layers", panel=STRUCTURED, metavar="A:B"),
]
RoundTo = Annotated[
    int | None,
    option(
        "Multiple that MLP widths are rounded to, in channels.", default="8 below a billion parameters, else 64",
        panel=STRUCTURED,
    ),
]  # fmt: skip
Protocol = Annotated[
    str | None,
    option(
        "Meaning of --ratio: engine (over the whole model) or llm-pruner (inside each of --layers).",
        default="engine", panel=STRUCTURED,
    ),
]  # fmt: skip
Aggregate = Annotated[
    str | None,
    option("Combination of a group's members: sum, mean, prod, max, first or last.", default="sum", panel=STRUCTURED),
]
Fold = Annotated[
    str | None,
    option(
        "Fold of query heads into KV groups: gqa, or llm-pruner (its misaligned fold, for comparison).",
        default="gqa", panel=STRUCTURED,
    ),
]  # fmt: skip
Compensate = Annotated[
    str | None,
    option(
        "Change of the kept units that makes up for the removed ones: none, bias or least-squares.", default="none",
        panel=STRUCTURED,
    ),
]  # fmt: skip
CompensateMode = Annotated[
    str | None,
    option(
        "Inputs that the compensation is fitted on: sequential (behind compensated layers) or one-shot (of the dense "
        "model).", default="sequential", panel=STRUCTURED,
    ),
]  # fmt: skip

HywiaVariant = Annotated[
    str | None,
    option(
        "Variant of HyWIA: a, b, or c (fitted).", default="c, or b with a fixed blend, whole layers or experts",
        panel=HYWIA,
    ),
]  # fmt: skip
HywiaTemperature = Annotated[float | None, option("Softmax temperature of HyWIA.", default=1.0, panel=HYWIA)]
HywiaBlend = Annotated[
    float | None,
    option("Fixed share of the fine score, 0 to 1, in place of attention.", default="none", panel=HYWIA),
]
HywiaSteps = Annotated[int | None, option("Steps of the HyWIA fit.", default=40, panel=HYWIA)]
HywiaSamples = Annotated[
    int | None,
    option("Calibration samples held out for the HyWIA fit.", default=8, panel=HYWIA),
]
