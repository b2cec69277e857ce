"""What every verb shares: the application, its two consoles, options of models, and how a job is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune large language models.",
)
# No markup: paths and generated text hold brackets of their own.
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a GGUF file, or a hub name.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16: the weights in memory and on disk.")]
ComputeDtype = Annotated[
    str | None,
    typer.Option(help="What float32 weights compute in: float32, bfloat16, float16, or auto (fastest here) [--dtype]."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the model.")]
Ratio = Annotated[float | None, typer.Option(help="Fraction of the prunable parameters to remove.")]
Shape = Annotated[str | None, typer.Option(help="uniform (loads anywhere) or per-layer.")]
Layers = Annotated[str | None, typer.Option(metavar="A:B", help="Only layers A to B-1 may change.")]
RoundTo = Annotated[int | None, typer.Option(help="MLP widths become multiples of this.")]
Recipe = Annotated[Path | None, typer.Option(help="YAML file of these options; flags win.")]
EvalSeqlen = Annotated[int, typer.Option(help="Tokens a window of that text.")]
EvalWindows = Annotated[int | None, typer.Option(help="Windows of that text (16).")]
Proof = Annotated[bool, typer.Option(help="Reopen the checkpoint in a fresh process and compare.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")]


def say(line: str) -> None:
    """What is being done, beside the results."""
    err.print(line, style="dim")


def show_smoke_test(*texts: str | None) -> None:
    """One line where one of the texts that were read is the built-in one; None was not read."""
    from pruneengine.report.pages.prune import SMOKE_TEXT

    if any(text and text.startswith("builtin") for text in texts):
        out.print(SMOKE_TEXT)


def run_job(job: Callable[..., Any], config: Any, options: Any) -> Any:
    """The job's result, once its warnings are printed."""
    result = job(config, options, say=say)
    for warning in result.warnings:
        err.print(f"warning: {warning}", style="yellow")
    return result


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the command line holds: None was not given."""
    return {name: value for name, value in values.items() if value is not None}


def flags(names: Iterable[str]) -> str:
    """Options as they are typed, comma separated."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def parse_dtype(name: str):
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"unknown dtype {name!r}; choose from {', '.join(known)}")
    return known[name]


def parse_compute_dtype(name: str | None, weights: str, device: str):
    """The dtype to compute in, None for that of the weights; ValueError for a cast that cannot be."""
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
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from None
    return name


def read_config(kind: type, recipe: Path | None, options: Mapping[str, Any], section: str = "config"):
    """A config from a recipe and what was given on the command line, which wins; None was not given."""
    from pruneengine.common.recipes import read_recipe

    values = (read_recipe(recipe, section) if recipe else {}) | given(options)
    if "ratio" not in values:
        raise ValueError("give --ratio R (or a --recipe that holds one)")
    return kind.from_dict(values)
