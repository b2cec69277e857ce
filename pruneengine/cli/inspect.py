"""The verb inspect: what a prune could do and would cost, from shapes alone."""

from __future__ import annotations

from typing import Annotated

import typer

from pruneengine.cli.app import Device, Dtype, Model, Trust, out, parse_device, parse_dtype


def inspect(
    model: Model,
    nsamples: Annotated[int, typer.Option(help="Calibration samples to predict for.")] = 32,
    seqlen: Annotated[int, typer.Option(help="Tokens a sample.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Samples a forward pass.")] = 8,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """What can be pruned, what would be left, what it would cost and what will load the result. Loads no weights."""
    from pruneengine.cli import tables
    from pruneengine.fusion import methods
    from pruneengine.loading import load_skeleton
    from pruneengine.plan import default_rounding
    from pruneengine.predict import measure_flops, predict
    from pruneengine.structure import find_groups

    kind, device = parse_dtype(dtype), parse_device(device)
    structure = find_groups(load_skeleton(model, trust_remote_code))
    tables.show_structure(out, model, structure, default_rounding(structure))
    tables.show_sizes(out, structure, kind.itemsize)
    flops = measure_flops(kind, device)
    title = f"statistics on {nsamples} x {seqlen} tokens (estimate, at {flops / 1e9:.0f} GFLOP/s measured here)"
    predictions = [predict(structure, m, nsamples, seqlen, batch_size, kind.itemsize, flops) for m in methods()]
    tables.show_predictions(out, predictions, title)
    tables.show_loaders(out, structure)
