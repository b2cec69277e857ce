"""Command-line options of recover: rows, training, adapters and distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pruneengine.cli.options.option import ADAPTERS, DISTILLATION, TRAINING, option

Out = Annotated[Path, option("Folder of the recovered checkpoint.", "--out", metavar="DIR")]
Data = Annotated[
    str | None,
    option(
        "Text to train on: alpaca, a file or folder of instructions, chats or text, builtin, c4:2000, ...",
        default="that of --recipe, where it holds one",
        metavar="SPEC",
    ),
]
Rows = Annotated[
    int | None, option("Largest number of rows or windows.", default="the counts in --data, or all", panel=TRAINING)
]
ValRows = Annotated[
    int | None,
    option("Number of rows for validation; 0 for none.", default="2000, at most 10% of the rows", panel=TRAINING),
]
ValFraction = Annotated[
    float | None, option("Rows for validation as a fraction of all.", default="as --val-rows", panel=TRAINING)
]
Cutoff = Annotated[
    int | None, option("Tokens per window, and the most per instruction row.", default=256, panel=TRAINING)
]
Lr = Annotated[float | None, option("Learning rate of AdamW.", default="1e-4", panel=TRAINING)]
Epochs = Annotated[float | None, option("Passes over the rows.", default=2, panel=TRAINING)]
MaxSteps = Annotated[int | None, option("Exact number of steps, in place of --epochs.", default="none", panel=TRAINING)]
Batch = Annotated[int | None, option("Rows per step.", default=64, panel=TRAINING)]
MicroBatch = Annotated[int | None, option("Rows per forward pass; --batch is a multiple.", default=4, panel=TRAINING)]
Warmup = Annotated[
    int | None, option("Steps of rising learning rate, at most a tenth of all.", default=100, panel=TRAINING)
]
EvalEvery = Annotated[
    int | None,
    option("Steps between validations and checkpoints.", default="100, or a quarter of a shorter run", panel=TRAINING),
]
GradientCheckpointing = Annotated[
    bool | None,
    option("Recompute activations: less memory, about a third slower.", "--gradient-checkpointing", panel=TRAINING),
]
Seed = Annotated[
    int | None,
    option("Random seed for the choice and order of rows, the adapters and dropout.", default=0, panel=TRAINING),
]
Targets = Annotated[
    str | None,
    option(
        "Linears that get an adapter, comma separated: q_proj,v_proj, or re:PATTERN of the whole path.",
        default="all linears of the decoder layers", panel=ADAPTERS,
    ),
]  # fmt: skip
LoraR = Annotated[int | None, option("Rank of the adapters.", default=8, panel=ADAPTERS)]
LoraAlpha = Annotated[
    float | None, option("Scale of the adapters: the update is alpha / r times B A x.", default=16, panel=ADAPTERS)
]
LoraDropout = Annotated[float | None, option("Dropout of the adapters' input, 0 to 1.", default=0.05, panel=ADAPTERS)]
Teacher = Annotated[
    str | None,
    option("Dense model whose logits are imitated too.", default="none", panel=DISTILLATION, metavar="MODEL"),
]
DistillWeight = Annotated[
    float | None, option("Share of the imitation in the loss, 0 to 1.", default=0.5, panel=DISTILLATION)
]
DistillTemperature = Annotated[
    float | None, option("Softmax temperature of both distributions.", default=2, panel=DISTILLATION)
]
DistillTopk = Annotated[
    int | None,
    option("Number of the teacher's logits that are told apart; the rest is one class.", default=64,
           panel=DISTILLATION),
]  # fmt: skip
