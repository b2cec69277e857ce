"""Command-line option with a full help text: its default at the end, and the panel that --help shows it in."""

from __future__ import annotations

from typing import Any

import typer

STRUCTURED = "Structured pruning (KV groups, channels, layers and experts are removed)"
HYWIA = "HyWIA (--method hywia)"
SPARSE = "Sparse pruning (single weights become zero)"
CALIBRATION = "Calibration text"
SEARCH = "Search"
ADAPRUNER = "Plans (--method adapruner)"
DSA = "Allocation functions (--method dsa)"
RECOVERY = "Recovery (LoRA after pruning)"
TRAINING = "Training"
ADAPTERS = "Adapters"
DISTILLATION = "Distillation"
EVALUATION = "Evaluation"
OUTPUT = "Loading and saving"


def option(help: str, *names: str, default: object = None, panel: str | None = None, **more: Any) -> Any:
    """Return a typer option.

    Args:
        help: a full phrase with its unit; the default is added.
        names: as typed; none for the parameter's own name.
        default: the value that holds without the option, where that is not the parameter's own default.
        panel: heading in ``--help``; None for the common options, which come first.
        more: further arguments of ``typer.Option``.
    """
    if default is not None:
        # The backslash keeps rich from reading the bracket as markup.
        help += rf" \[default: {default}]"
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)
