"""Command-line options of ``--recover`` in prune and search, and the config that they give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pruneengine.cli.app import given
from pruneengine.cli.options.option import RECOVERY, option
from pruneengine.common.errors import InputError

if TYPE_CHECKING:
    from pruneengine.recovery import RecoverConfig

Recover = Annotated[
    bool, option("Train LoRA adapters on the pruned model and merge them, as the verb recover.", "--recover",
                 panel=RECOVERY),
]  # fmt: skip
RecoverData = Annotated[
    str | None,
    option("Text to train on: alpaca, an instruction or text file, builtin, c4:2000, ...", panel=RECOVERY,
           metavar="SPEC"),
]  # fmt: skip
RecoverSteps = Annotated[
    int | None, option("Number of training steps.", default="2 epochs over the rows", panel=RECOVERY)
]
RecoverRecipe = Annotated[
    Path | None, option("YAML file of recover's options; options on the command line win.", panel=RECOVERY)
]


def recovery_config(asked: bool, recipe: Path | None, data: str | None, steps: int | None) -> RecoverConfig | None:
    """Return how to recover; None for no recovery.

    Raises:
        ValueError: options of a recovery that was not asked for, or no text for one that was.
    """
    from pruneengine.recovery import RecoverConfig, read_recovery_recipe

    named = given({"data": data, "max_steps": steps})
    if not asked and (named or recipe):
        raise InputError("options of the recovery without --recover")
    values = (read_recovery_recipe(recipe) if recipe else {}) | named
    if asked and "data" not in values:
        raise InputError("--recover needs --recover-data SPEC (or a --recover-recipe that holds it)")
    return RecoverConfig.from_dict(values) if asked else None
