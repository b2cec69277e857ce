"""What prune and search share of ``--recover``: its options, and the config that they give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruneengine.cli.app import given

if TYPE_CHECKING:
    from pruneengine.recovery import RecoverConfig

Recover = Annotated[bool, typer.Option("--recover", help="Train LoRA on the pruned model, see recover.")]
RecoverData = Annotated[str | None, typer.Option(metavar="SPEC", help="What to train on.")]
RecoverSteps = Annotated[int | None, typer.Option(help="Steps, in place of 2 epochs.")]
RecoverRecipe = Annotated[Path | None, typer.Option(help="YAML file of recover's options; flags win.")]


def recovery_config(asked: bool, recipe: Path | None, data: str | None, steps: int | None) -> RecoverConfig | None:
    """How to recover, or None for not at all.

    Raises:
        ValueError: options of a recovery that was not asked for, or no text for one that was.
    """
    from pruneengine.recovery import RecoverConfig, read_recovery_recipe

    named = given({"data": data, "max_steps": steps})
    if not asked and (named or recipe):
        raise ValueError("options of the recovery without --recover")
    values = (read_recovery_recipe(recipe) if recipe else {}) | named
    if asked and "data" not in values:
        raise ValueError("--recover needs --recover-data SPEC (or a --recover-recipe that holds it)")
    return RecoverConfig.from_dict(values) if asked else None
