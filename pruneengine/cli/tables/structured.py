"""Tables of a structured prune, of measures and of times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from rich.console import Console
from rich.table import Table

from pruneengine.checkpoint.write import SavedCheckpoint
from pruneengine.evaluation.measures import Measures
from pruneengine.export.runtimes import Runtime
from pruneengine.jobs.prune import JobResult
from pruneengine.model import Group, Structure, layer_of
from pruneengine.recovery import RecoverReport
from pruneengine.report.values.blends import blends
from pruneengine.report.values.structured import plan_columns
from pruneengine.report.words import duration, size
from pruneengine.structured.compensate import Compensation
from pruneengine.structured.cost import Prediction
from pruneengine.structured.prune import PruneReport

PARTS = {
    "heads": "KV groups", "mlp": "channels", "experts": "experts", "experts.mlp": "channels of experts",
}  # fmt: skip


def show_structure(console: Console, source: str, structure: Structure, round_to: int) -> None:
    """Print groups, legal widths and the ratios they give, and what each uniform width leaves of the model."""
    parts: dict[str, list[Group]] = {}
    for group in structure.groups:
        parts.setdefault(group.part, []).append(group)
    table = Table(
        title=f"{source}: {structure.model_type}, {structure.total_params:,} parameters", title_justify="left"
    )
    for column in ("kind", "units a layer", "parameters a unit", "share of the model", "legal ratios"):
        table.add_column(column)
    total = structure.total_params
    layers = structure.num_layers
    for kind, groups in parts.items():
        step = 1 if kind == "heads" else round_to
        units = sorted({g.units for g in groups})
        table.add_row(
            kind,
            _span(units),
            _span(sorted({g.unit_params for g in groups})),
            f"{sum(g.params for g in groups) / total:.1%}",
            ", ".join(f"{i / units[0]:.3f}" for i in range(1, units[0]))
            if kind == "heads" and units[0] <= 8
            else f"steps of {step / units[0]:.4f} (widths in multiples of {step})",
        )
    if structure.experts_per_token:
        sizes = [params for of_layer in structure.expert_params for params in of_layer]
        counts = sorted({len(of_layer) for of_layer in structure.expert_params})
        table.add_row(
            "experts", _span(counts), _span(sorted(set(sizes))), f"{sum(sizes) / total:.1%}",
            f"steps of {1 / counts[0]:.4f} ({structure.experts_per_token} of a layer stay)",
        )  # fmt: skip
    table.add_row(
        "layers", f"{layers} in all", _span(sorted(set(structure.layer_params))),
        f"{sum(structure.layer_params) / total:.1%}", f"steps of {1 / layers:.4f}",
    )  # fmt: skip
    console.print(table)
    console.print(
        f"a KV group is one key and value head of {structure.head_dim} with {structure.queries_per_kv} query head(s)"
        if structure.heads_reason is None
        else structure.undivided_heads
    )


def show_sizes(console: Console, structure: Structure, itemsize: int) -> None:
    """Print what a ratio leaves of the whole model, when heads and mlp are pruned."""
    table = Table(title="what a ratio leaves (heads and mlp)", title_justify="left")
    for column in ("ratio", "parameters", "of the model", "weights"):
        table.add_column(column, justify="right")
    prunable = structure.prunable_params(("heads", "mlp"))
    for ratio in (0.1, 0.2, 0.3, 0.5):
        kept = structure.total_params - round(ratio * prunable)
        table.add_row(f"{ratio:g}", f"{kept:,}", f"{kept / structure.total_params:.1%}", size(kept * itemsize))
    console.print(table)


def show_predictions(console: Console, predictions: list[Prediction], title: str) -> None:
    """Print the predicted memory, passes and time of every method's statistics."""
    table = Table(title=title, title_justify="left")
    for column in ("method", "peak memory", "forward passes", "time"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for p in predictions:
        table.add_row(p.method, size(p.bytes), f"{p.passes:g}", duration(p.seconds))
    console.print(table)


def show_runtimes(console: Console, runtimes: Iterable[Runtime], title: str) -> None:
    """Print which programs open a checkpoint, and why the others do not."""
    table = Table(title=title, title_justify="left")
    for column in ("program", "given", "opens it", "because"):
        table.add_column(column)
    for way in runtimes:
        opens = {True: "yes", False: "no", None: "not known"}[way.opens]
        table.add_row(way.name, way.how, opens, way.why)
    console.print(table)


def show_plan(console: Console, report: PruneReport) -> None:
    """Print the kept units of every layer."""
    plan = report.plan
    table = Table(title="plan", title_justify="left")
    columns = {PARTS[part]: column for part, column in plan_columns(plan).items()}
    for column in ("layer", *columns):
        table.add_column(column, justify="right")
    for layer in range(len(next(iter(columns.values()))["units"])):
        if layer not in plan.kept_layers:
            table.add_row(str(layer), *["removed"] * len(columns))
            continue
        pairs = ((column["kept"][layer], column["units"][layer]) for column in columns.values())
        table.add_row(str(layer), *(f"{kept} of {units}" if kept < units else str(units) for kept, units in pairs))
    console.print(table)
    show_target(console, report)


def show_blends(console: Console, report: PruneReport) -> None:
    """Print how a fused method blended the scores of every group, and how far the two disagree."""
    table = Table(title=f"how {report.scores.metric} blended coarse and fine scores", title_justify="left")
    for column in ("group", "share of fine", "least", "most", "rank correlation", "removed", "by both alone"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for row in blends(report.scores, report.plan):
        shares = (f"{value:.3f}" for value in (row.share, row.low, row.high))
        both = "-" if row.removed == 0 else f"{row.overlap:.1%}"
        correlation = "-" if row.correlation != row.correlation else f"{row.correlation:.3f}"
        table.add_row(row.group, *shares, correlation, f"{row.removed} of {row.units}", both)
    console.print(table)
    if report.fit is not None:
        checks = ", ".join(f"{step}: {loss:.4f}" for step, loss in report.fit.checks.items())
        console.print(f"held-out loss by step of the fit: {checks}; step {report.fit.best} was kept")


def show_target(console: Console, report: PruneReport) -> None:
    """Print what was asked for, what the plan reaches, and why they differ if they do."""
    plan, config = report.plan, report.config
    what = "of the parameters in " + " and ".join(plan.kinds)
    changed = f"{plan.params_before:,} => {plan.params_after:,} parameters"
    whole = f"{1 - plan.params_after / plan.params_before:.1%} of the whole model"
    if config.protocol == "llm-pruner":
        layers = config.layer_range(len({layer_of(name) for name in plan.units}))
        console.print(
            f"asked to remove {plan.asked:.2%} inside each of the layers {layers.start}:{layers.stop}; "
            f"that is {plan.reached:.2%} {what}: {changed} ({whole})"
        )
        return
    console.print(f"asked to remove {plan.asked:.2%} {what}; the plan removes {plan.reached:.2%}: {changed} ({whole})")
    if abs(plan.asked - plan.reached) > 0.005:
        console.print("these are the nearest legal widths: whole heads and layers, rounded multiples of channels")


def show_compensation(console: Console, compensation: Compensation, added: int) -> None:
    """Print how far the kept units make up for the removed ones on samples held out of the fit.

    Args:
        console: to print on.
        compensation: of the pruned model.
        added: parameters that its biases add.
    """
    groups = compensation.groups
    before, after = (sum(getattr(group, name) for group in groups) / len(groups) for name in ("before", "after"))
    console.print(
        f"compensation by {compensation.how}, {compensation.mode}: {len(compensation.corrections)} of {len(groups)} "
        f"groups changed; held-out squared error of their outputs {before:.2%} => {after:.2%} on average"
        + (f"; biases add {added:,} parameters" if added else "")
    )


def show_result(console: Console, result: JobResult, title: str) -> None:
    """Print dense beside pruned, then the seconds by stage."""
    dense, pruned = result.dense, result.pruned
    table = Table(title=title, title_justify="left")
    for column in ("", "dense", "pruned", "change"):
        table.add_column(column, justify="left" if not column else "right")
    for name, before, after, form in _rows(dense, pruned):
        table.add_row(name, form(before), form(after), f"{after / before - 1:+.1%}")
    console.print(table)
    if dense.perplexity is not None:
        console.print(f"perplexity over {dense.perplexity.tokens:,} tokens, computed in {dense.perplexity.dtype}")
    show_times(console, result.seconds)


def show_recovery(console: Console, report: RecoverReport, before: Measures, after: Measures, title: str) -> None:
    """Print before beside after the recovery, and the losses on the way."""
    table = Table(title=title, title_justify="left")
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if not column else "right")
    rows = []
    if before.perplexity and after.perplexity:
        rows.append(("perplexity", before.perplexity.perplexity, after.perplexity.perplexity))
    if report.validation:
        rows.append(("validation loss, nats", report.validation[0], report.validation[report.best_step]))
    for name, old, new in rows:
        table.add_row(name, f"{old:.4g}", f"{new:.4g}", f"{new / old - 1:+.1%}")
    if rows:
        console.print(table)
    went_on = f", going on from step {report.resumed_from}" if report.resumed_from is not None else ""
    console.print(
        f"{report.steps} steps over {report.rows:,} rows ({report.tokens:,} predicted tokens), {report.trained:,} "
        f"parameters trained{went_on}; step {report.best_step} was kept"
    )
    if report.validation:
        checks = ", ".join(f"{step}: {loss:.4f}" for step, loss in report.validation.items())
        console.print(f"validation loss by step: {checks}")


def show_checkpoint(
    console: Console, saved: SavedCheckpoint, prompt: str | None = None, text: str | None = None
) -> None:
    """Print the reload proof and the continuation of the prompt, where there are any, and the checkpoint's folder."""
    if saved.proof is not None:
        console.print(
            f"reloaded in a fresh process with {saved.proof.loader}: logits within {saved.proof.max_difference:.1e}, "
            f"next tokens equal at {saved.proof.argmax_agreement:.1%} of positions"
        )
    if text is not None:
        console.print(f"there it continues {prompt!r}: {text!r}")
    console.print(f"saved {saved.path} ({saved.bytes / 1e6:.1f} MB)")


def show_times(console: Console, seconds: Mapping[str, float]) -> None:
    """Print the seconds by stage, and their sum."""
    table = Table(title="where the time went", title_justify="left")
    table.add_column("stage")
    table.add_column("time", justify="right")
    for stage, spent in seconds.items():
        table.add_row(stage, duration(spent))
    table.add_row("total", duration(sum(seconds.values())), style="bold")
    console.print(table)


def _rows(dense: Measures, pruned: Measures) -> Iterator[tuple[str, float, float, Callable[[float], str]]]:
    """Yield name, dense value, pruned value and form of every measure that both sides have."""
    yield "parameters", dense.params, pruned.params, lambda v: f"{v:,}"
    yield "weights on disk", dense.weight_bytes, pruned.weight_bytes, size
    if dense.perplexity:
        after = pruned.perplexity.perplexity if pruned.perplexity else math.nan
        yield "perplexity", dense.perplexity.perplexity, after, lambda v: f"{v:.2f}"
    if dense.speed and pruned.speed:
        yield "prefill, tokens/s", dense.speed.prefill, pruned.speed.prefill, lambda v: f"{v:.0f}"
        yield "decode, tokens/s", dense.speed.decode, pruned.speed.decode, lambda v: f"{v:.1f}"


def _span(values: list[int]) -> str:
    """Return the one value of a sorted list, or its least and its greatest."""
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
