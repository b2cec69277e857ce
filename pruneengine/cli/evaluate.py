"""The verb eval: what a checkpoint is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruneengine.cli.app import (
    ComputeDtype,
    Device,
    Dtype,
    Model,
    Trust,
    out,
    parse_compute_dtype,
    parse_device,
    parse_dtype,
    say,
    show_smoke_test,
)

if TYPE_CHECKING:
    from pruneengine.evaluation.results import Results
    from pruneengine.evaluation.zero_shot import Metric


def evaluate(
    model: Model,
    text: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Evaluation text, or none [builtin-eval, none with --tasks].")
    ] = None,
    seqlen: Annotated[int, typer.Option(help="Tokens a window.")] = 256,
    windows: Annotated[int | None, typer.Option(help="Only the first windows of the text.")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="Zero-shot tasks of lm-eval.")] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Further task files; runs their code.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first items of each task.")] = None,
    batch_size: Annotated[
        str, typer.Option(metavar="N|auto|auto:N", help="Sequences a forward of the tasks; a text takes 4 windows.")
    ] = "8",
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens per second too.")] = False,
    dense: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Its size too, and its speed in turn with MODEL's.")
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Keep the results there [MODEL/results.json if pruneengine wrote MODEL]."
        ),
    ] = None,
    dtype: Dtype = "float32",
    compute_dtype: ComputeDtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Window perplexity of a model, zero-shot accuracy, speed and size; kept in results.json for compare."""
    from pruneengine.jobs.evaluate import EvalOptions, run

    names = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks is not None else ()
    if tasks is not None and not names:
        raise ValueError(f"--tasks {tasks!r}: expected names of tasks, comma separated")
    if text is None:
        text = "none" if names else "builtin-eval"
    options = EvalOptions(
        source=model, text=None if text == "none" else text, seqlen=seqlen, windows=windows,
        tasks=names, include_path=include_path, limit=limit, batch_size=_whole(batch_size), speed=speed, dense=dense,
        out=out_file, dtype=parse_dtype(dtype),
        compute_dtype=parse_compute_dtype(compute_dtype, dtype, device),
        device=parse_device(device), trust_remote_code=trust_remote_code,
    )  # fmt: skip
    results = run(options, say=say)
    _show(results)
    if options.file is not None:
        out.print(f"kept in {options.file}")


def _whole(text: str) -> int | str:
    """What may be a number, as one; other words are judged by the job."""
    try:
        return int(text)
    except ValueError:
        return text


def _show(results: Results) -> None:
    for facts in (results.model, *((results.dense.model,) if results.dense else ())):
        out.print(
            f"{facts.source}: {facts.parameters:,} parameters, {facts.weight_bytes / 1e6:.1f} MB of weights, "
            f"{facts.kv_bytes_per_token:,} bytes of KV cache a token ({facts.dtype})"
        )
    for found in results.texts.values():
        out.print(
            f"perplexity {found.perplexity:.4f} on {found.text}: {found.windows} windows of {found.seqlen} tokens, "
            f"{found.tokens:,} predicted, {found.dtype}, {found.seconds:.1f} s"
        )
        show_smoke_test(found.text)
    if results.tasks:
        _show_tasks(results)
    if results.speed is not None:
        beside = f" ({results.dense.model.source}, in turn: " if results.dense else ""
        for name, rate, theirs in (
            ("prefill", results.speed.prefill, results.dense and results.dense.speed.prefill),
            ("decode", results.speed.decode, results.dense and results.dense.speed.decode),
        ):
            count = results.speed.prompt_tokens if name == "prefill" else results.speed.new_tokens
            against = f"{beside}{theirs:.1f}, {rate / theirs - 1:+.1%})" if theirs else ""
            out.print(f"{name} {rate:.1f} tokens/s, {count} tokens, median of {results.speed.repeats}{against}")


def _show_tasks(results: Results) -> None:
    from rich.table import Table

    from pruneengine.evaluation.zero_shot import mean_accuracy

    table = Table(title="zero-shot", title_justify="left")
    for column in ("task, version", "items", "metric", "value", "±", "time"):
        table.add_column(column, justify="left" if column in ("task, version", "metric") else "right")
    for found in results.tasks.values():
        for number, (name, metric) in enumerate(found.metrics.items()):
            head = (f"{found.task} {found.version}", f"{found.items} of {found.available}") if number == 0 else ("", "")
            star = " *" if name == found.main else ""
            table.add_row(*head, name + star, *_value(metric), f"{found.seconds:.1f} s" if number == 0 else "")
    scored = [found for found in results.tasks.values() if found.main]
    if len(scored) > 1:
        table.add_row(f"mean of {len(scored)}", "", "*", *_value(mean_accuracy(scored)), "", style="bold")
    out.print(table)
    for found in results.tasks.values():
        if found.truncated:
            out.print(f"{found.task}: {found.truncated} prompts were too long for the model and lost their beginning")
    versions = ", ".join(dict.fromkeys(found.lm_eval for found in results.tasks.values()))
    out.print(f"* enters the mean; lm-eval {versions}; ± is one standard error")


def _value(metric: Metric) -> tuple[str, str]:
    error = metric.standard_error
    return f"{metric.value:.4f}", "-" if error is None else f"{error:.4f}"
