"""The verb eval: perplexity, zero-shot accuracy, speed and size of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pruneengine.cli.app import out, parse_compute_dtype, parse_device, parse_dtype, say, show_smoke_test
from pruneengine.cli.options.option import option
from pruneengine.cli.options.shared import ComputeDtype, Device, Model, Trust
from pruneengine.common.errors import InputError

if TYPE_CHECKING:
    from pruneengine.evaluation.results import Results
    from pruneengine.evaluation.zero_shot import Metric


def evaluate(
    model: Model,
    text: Annotated[
        str | None,
        option(
            "Evaluation text, or none to measure no perplexity.",
            default="builtin-eval, or none with --tasks",
            metavar="SPEC",
        ),
    ] = None,
    seqlen: Annotated[int, option("Tokens per evaluation window.")] = 256,
    windows: Annotated[int | None, option("Number of evaluation windows, from the first on.", default="all")] = None,
    tasks: Annotated[
        str | None, option("Zero-shot tasks of lm-eval, comma separated.", default="none", metavar="A,B")
    ] = None,
    include_path: Annotated[
        Path | None, option("Folder of further task files, whose code is run.", default="none", metavar="DIR")
    ] = None,
    limit: Annotated[int | None, option("Number of items per task, from the first on.", default="all")] = None,
    batch_size: Annotated[
        str, option("Sequences per forward pass of the tasks; a text takes 4 windows.", metavar="N|auto|auto:N")
    ] = "8",
    speed: Annotated[bool, option("Measure tokens per second, too.", "--speed")] = False,
    dense: Annotated[
        str | None,
        option(
            "Another model, whose size is shown and whose speed is measured in turn.", default="none", metavar="MODEL"
        ),
    ] = None,
    out_file: Annotated[
        Path | None,
        option(
            "File of the results.",
            "--out",
            default="MODEL/results.json if pruneengine wrote MODEL, else none",
            metavar="FILE",
        ),
    ] = None,
    dtype: Annotated[str, option("Dtype of the weights in memory: float32, bfloat16 or float16.")] = "float32",
    compute_dtype: ComputeDtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Measure window perplexity, zero-shot accuracy, speed and size of a model; keep them in results.json."""
    from pruneengine.jobs.evaluate import EvalOptions, run

    names = tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks is not None else ()
    if tasks is not None and not names:
        raise InputError(f"--tasks {tasks!r}: expected names of tasks, comma separated")
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
    """Return a whole number as one, and other words as they are; the job judges them."""
    try:
        return int(text)
    except ValueError:
        return text


def _show(results: Results) -> None:
    """Print sizes, perplexities, accuracies and speeds."""
    for facts in (results.model, *((results.dense.model,) if results.dense else ())):
        out.print(
            f"{facts.source}: {facts.parameters:,} parameters, {facts.weight_bytes / 1e6:.1f} MB of weights, "
            f"{facts.kv_bytes_per_token:,} bytes of KV cache a token ({facts.dtype})"
        )
    for text in results.texts.values():
        out.print(
            f"perplexity {text.perplexity:.4f} on {text.text}: {text.windows} windows of {text.seqlen} tokens, "
            f"{text.tokens:,} predicted, {text.dtype}, {text.seconds:.1f} s"
        )
        show_smoke_test(text.text)
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
    """Print the table of the zero-shot tasks, and their mean."""
    from rich.table import Table

    from pruneengine.evaluation.zero_shot import mean_accuracy

    table = Table(title="zero-shot", title_justify="left")
    for column in ("task, version", "items", "metric", "value", "±", "time"):
        table.add_column(column, justify="left" if column in ("task, version", "metric") else "right")
    for task in results.tasks.values():
        for number, (name, metric) in enumerate(task.metrics.items()):
            head = (f"{task.task} {task.version}", f"{task.items} of {task.available}") if number == 0 else ("", "")
            star = " *" if name == task.main else ""
            table.add_row(*head, name + star, *_value(metric), f"{task.seconds:.1f} s" if number == 0 else "")
    scored = [task for task in results.tasks.values() if task.main]
    if len(scored) > 1:
        table.add_row(f"mean of {len(scored)}", "", "*", *_value(mean_accuracy(scored)), "", style="bold")
    out.print(table)
    for task in results.tasks.values():
        if task.truncated:
            out.print(f"{task.task}: {task.truncated} prompts were too long for the model and lost their beginning")
    versions = ", ".join(dict.fromkeys(task.lm_eval for task in results.tasks.values()))
    out.print(f"* enters the mean; lm-eval {versions}; ± is one standard error")


def _value(metric: Metric) -> tuple[str, str]:
    """Return a metric's value and its standard error as text."""
    error = metric.standard_error
    return f"{metric.value:.4f}", "-" if error is None else f"{error:.4f}"
