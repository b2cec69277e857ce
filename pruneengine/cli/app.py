"""Parts that every verb shares: the application, its two consoles, the parsing of options, and the run of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer
from rich.console import Console

from pruneengine.common.errors import InputError

if TYPE_CHECKING:
    import torch


class HasWarnings(Protocol):
    """A job's result, as far as every verb knows it."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all stages."""


T = TypeVar("T")
R = TypeVar("R", bound=HasWarnings)

# Options whose name on the command line differs from the config's field.
FIELDS = {"held_out_windows": "held_out", "held_out_share": "held_out", "total_windows": "windows"}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune large language models.",
)
# No markup: paths and generated text hold brackets of their own.
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def say(line: str) -> None:
    """Print what is being done, on standard error beside the results."""
    err.print(line, style="dim")


def show_smoke_test(*texts: str | None) -> None:
    """Print a line if one of the given texts is the built-in one; None was not read."""
    from pruneengine.report.pages.prune import SMOKE_TEXT

    if any(text and text.startswith("builtin") for text in texts):
        out.print(SMOKE_TEXT)


def run_job(job: Callable[..., R], config: Any, options: Any) -> R:
    """Run the job, print its warnings and return its result."""
    result = job(config, options, say=say)
    for warning in result.warnings:
        err.print(f"warning: {warning}", style="yellow")
    return result


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the command line holds; None was not given."""
    return {name: value for name, value in values.items() if value is not None}


def config_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options by the names of the config's fields."""
    return {FIELDS.get(name, name): value for name, value in given(options).items()}


def renamed(value: T | None, former: T | None, names: str) -> T | None:
    """Return the value of an option or of its former name.

    Args:
        value: of the option; None was not given.
        former: of its former name; None was not given.
        names: both, as typed, for the error.

    Raises:
        ValueError: both are given.
    """
    if value is not None and former is not None:
        raise InputError(f"{names} are names of one option; give the first")
    return former if value is None else value


def flags(names: Iterable[str]) -> str:
    """Return options as they are typed, comma separated."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def parse_dtype(name: str) -> torch.dtype:
    """Return the dtype of that name; ValueError for an unknown one."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InputError(f"unknown dtype {name!r}; choose from {', '.join(known)}")
    return known[name]


def parse_compute_dtype(name: str | None, weights: str, device: str) -> torch.dtype | None:
    """Return the dtype to compute in; None for that of the weights.

    Raises:
        ValueError: an unknown name, or a cast that cannot be.
    """
    import torch

    from pruneengine.evaluation.perplexity import best_dtype
    from pruneengine.model.decoder import autocast

    own = parse_dtype(weights)
    if name is None:
        return None
    if name == "auto":
        return best_dtype(parse_device(device)) if own == torch.float32 else None
    dtype = parse_dtype(name)
    autocast(torch.empty(0, dtype=own), dtype)
    return dtype


def parse_device(name: str) -> str:
    """Return the device's name; ValueError if nothing can be computed on it here."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here: {reason}") from None
    return name


def read_values(recipe: Path | None, section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe's section and of the command line, which wins; None was not given."""
    from pruneengine.common.recipes import read_recipe

    return (read_recipe(recipe, section) if recipe else {}) | config_values(options)


def require_ratio(values: Mapping[str, Any], otherwise: str = "") -> Mapping[str, Any]:
    """Return the values of a structured config; ValueError without a ratio.

    Args:
        values: of the config, by name.
        otherwise: options that ask for something else, for the error.
    """
    if "ratio" not in values:
        raise InputError(f"give --ratio R{otherwise} (or a --recipe that holds one)")
    return values
