"""The verb inspect: possible ratios and predicted cost of a prune, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruneengine.cli.app import out, parse_device, parse_dtype
from pruneengine.cli.options.option import option
from pruneengine.cli.options.shared import Device, Model, Trust
from pruneengine.common.validation import require_whole

if TYPE_CHECKING:
    from pruneengine.export.model_shape import ModelShape
    from pruneengine.structured.plan import Plan


def inspect(
    model: Model,
    nsamples: Annotated[int, typer.Option(help="Number of calibration samples to predict for.")] = 32,
    seqlen: Annotated[int, typer.Option(help="Tokens per calibration sample.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Calibration samples per forward pass.")] = 8,
    plan: Annotated[
        Path | None, option("A plan.json, to say what opens its result.", default="none", metavar="FILE")
    ] = None,
    dtype: Annotated[str, option("Dtype of the weights to predict for: float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Show what can be pruned, what it would cost and leave, and what will load the result; load no weights."""
    from pruneengine.checkpoint.load import load_skeleton
    from pruneengine.cli.tables import structured as tables
    from pruneengine.export.model_shape import model_shape
    from pruneengine.export.runtimes import runtimes
    from pruneengine.model import find_groups
    from pruneengine.structured.cost import measure_flops, predict
    from pruneengine.structured.plan import Plan, default_rounding
    from pruneengine.structured.scores.hywia import methods

    for name, value in (("nsamples", nsamples), ("seqlen", seqlen), ("batch_size", batch_size)):
        require_whole(name, value, 1, "a positive whole number")
    kind, device = parse_dtype(dtype), parse_device(device)
    skeleton = load_skeleton(model, trust_remote_code)
    structure = find_groups(skeleton)
    chosen = Plan.load(plan).check(structure) if plan else None
    tables.show_structure(out, model, structure, default_rounding(structure))
    tables.show_sizes(out, structure, kind.itemsize)
    flops = measure_flops(kind, device)
    title = f"statistics on {nsamples} x {seqlen} tokens (estimate, at {flops / 1e9:.0f} GFLOP/s measured here)"
    predictions = [predict(structure, m, nsamples, seqlen, batch_size, kind.itemsize, flops) for m in methods()]
    tables.show_predictions(out, predictions, title)
    for title, shape in _shapes(model_shape(skeleton), chosen):
        tables.show_runtimes(out, runtimes(shape), title)


def _shapes(layout: ModelShape, plan: Plan | None) -> Iterator[tuple[str, ModelShape]]:
    """Yield titled shapes that may come of a model: of a plan, of pruning at all, or the model as it is."""
    if plan is not None:
        yield "what opens the result of the plan", layout.after(plan)
    elif layout.uniform and not layout.unsaved_kinds:
        kept = (
            f" that keeps its {' and '.join(layout.kinds_without_config_name)}"
            if layout.kinds_without_config_name
            else ""
        )
        yield f"what opens it, and a uniform prune of it{kept}", layout
        if layout.kinds_without_config_name:
            yield (
                f"what opens a uniform prune of its {' and '.join(layout.kinds_without_config_name)}",
                replace(layout, unsaved_kinds=layout.kinds_without_config_name),
            )
        yield "what opens a per-layer prune of it", layout.one_channel_less
    else:
        yield "what opens it", layout
