"""The verb eval: what a checkpoint is worth."""

from __future__ import annotations

from typing import Annotated

import typer

from pruneengine.cli.app import Device, Dtype, Model, Trust, out, parse_device, parse_dtype


def evaluate(
    model: Model,
    text: Annotated[str, typer.Option(metavar="SPEC", help="Evaluation text.")] = "builtin-eval",
    seqlen: Annotated[int, typer.Option(help="Tokens a window.")] = 256,
    limit: Annotated[int | None, typer.Option(help="Only the first windows.")] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens per second too.")] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Window perplexity of a model, its size and, if asked, its speed."""
    from pruneengine import data, loading
    from pruneengine import evaluate as measure

    kind, device = parse_dtype(dtype), parse_device(device)
    data.check_spec(text, limit, default=1)
    loaded, tokenizer = loading.load_model(model, kind, device, trust_remote_code)
    windows = data.evaluation_windows(text, tokenizer, seqlen, limit)
    autocast = measure.best_dtype(device) if dtype == "float32" else None
    result = measure.perplexity(loaded, windows, dtype=autocast)
    size = measure.model_size(loaded)
    out.print(f"{model}: {size.parameters:,} parameters, {size.bytes / 1e6:.1f} MB of weights")
    out.print(
        f"perplexity {result.perplexity:.4f} on {text}: {len(windows)} windows of {seqlen} tokens, "
        f"{result.tokens:,} predicted, {result.dtype}, {result.seconds:.1f} s"
    )
    if speed:
        rate = measure.measure_speed(loaded)
        out.print(
            f"prefill {rate.prefill:.0f} tokens/s ({rate.prompt_tokens} tokens), decode {rate.decode:.1f} tokens/s "
            f"({rate.new_tokens} tokens), median of {rate.repeats}"
        )
