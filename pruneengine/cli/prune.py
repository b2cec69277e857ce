"""The verb prune: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruneengine.cli.app import (
    ComputeDtype,
    Device,
    Dtype,
    EvalSeqlen,
    EvalWindows,
    Layers,
    Model,
    Overwrite,
    Proof,
    Ratio,
    Recipe,
    RoundTo,
    Shape,
    Trust,
    out,
    parse_compute_dtype,
    parse_device,
    parse_dtype,
    read_config,
    run_job,
    show_smoke_test,
)
from pruneengine.cli.options.recovery import Recover, RecoverData, RecoverRecipe, RecoverSteps, recovery_config
from pruneengine.cli.options.sparse import (
    Block,
    Compare,
    Damp,
    Ignore,
    Mode,
    Outlier,
    PatternOption,
    Sparsity,
    Spread,
    sparse_config,
)

if TYPE_CHECKING:
    from pruneengine.jobs.options import JobOptions
    from pruneengine.sparse.config import SparseConfig


def prune(
    model: Model,
    out_dir: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the checkpoint goes.")] = None,
    method: Annotated[
        str | None, typer.Option(help="param_first, vectorize, hywia, wanda, ...; sparse: wanda, magnitude, sparsegpt.")
    ] = None,
    ratio: Ratio = None,
    structure: Annotated[str | None, typer.Option(help="Kinds of units: mlp,heads,layers,experts.")] = None,
    allocation: Annotated[
        str | None,
        typer.Option(help="uniform, global or unstructured; sparse: uniform, global, er, er-plus, owl, dsa, ..."),
    ] = None,
    shape: Shape = None,
    protocol: Annotated[str | None, typer.Option(help="engine, or llm-pruner: the ratio is inside --layers.")] = None,
    layers: Layers = None,
    aggregate: Annotated[str | None, typer.Option(help="sum, mean, prod, max, first or last member.")] = None,
    fold: Annotated[str | None, typer.Option(help="gqa, or llm-pruner: its misaligned fold, to compare.")] = None,
    round_to: RoundTo = None,
    compensate: Annotated[
        str | None, typer.Option(help="none, bias or least-squares: kept units make up for removed ones.")
    ] = None,
    compensate_mode: Annotated[str | None, typer.Option(help="sequential or one-shot.")] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="SPEC", help="builtin, self, a file, a hub name, or a mix a:64,b:64.")
    ] = None,
    nsamples: Annotated[int | None, typer.Option(help="Calibration samples (32).")] = None,
    seqlen: Annotated[int | None, typer.Option(help="Tokens a sample.")] = None,
    pack: Annotated[bool | None, typer.Option("--pack/--crop", help="Join short documents, or reject them.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a forward pass.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling, the random metric and a fit.")] = None,
    hywia_variant: Annotated[str | None, typer.Option(help="a, b, or c (fitted; the default).")] = None,
    hywia_temperature: Annotated[float | None, typer.Option(help="Of its softmax.")] = None,
    hywia_blend: Annotated[float | None, typer.Option(help="A fixed share of the fine score, 0 to 1.")] = None,
    hywia_steps: Annotated[int | None, typer.Option(help="Steps of the fit (40).")] = None,
    hywia_samples: Annotated[int | None, typer.Option(help="Samples held out for the fit (8).")] = None,
    sparsity: Sparsity = None,
    pattern: PatternOption = None,
    spread: Spread = None,
    outlier: Outlier = None,
    compare: Compare = None,
    mode: Mode = None,
    damp: Damp = None,
    block: Block = None,
    ignore: Ignore = None,
    recipe: Recipe = None,
    statistics: Annotated[Path | None, typer.Option(help="File to reuse statistics from, or to keep them in.")] = None,
    recover: Recover = False,
    recover_data: RecoverData = None,
    recover_steps: RecoverSteps = None,
    recover_recipe: RecoverRecipe = None,
    eval_text: Annotated[
        str, typer.Option(metavar="SPEC", help="Text of the perplexity; none for none.")
    ] = "builtin-eval",
    eval_seqlen: EvalSeqlen = 256,
    eval_windows: EvalWindows = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens/s (keeps a dense copy in memory).")] = False,
    prompt: Annotated[str | None, typer.Option(help="Let the reloaded checkpoint continue this.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the per-layer plan and stop.")] = False,
    proof: Proof = True,
    overwrite: Overwrite = False,
    dtype: Dtype = "float32",
    compute_dtype: ComputeDtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Prune a model, save it, prove that it reloads, and show dense beside pruned."""
    from pruneengine.cli.tables import structured as tables
    from pruneengine.jobs.options import JobOptions
    from pruneengine.jobs.prune import DryRun, run
    from pruneengine.structured.config import PruneConfig

    shared = {
        "method": method, "allocation": allocation, "calibration": calibration, "nsamples": nsamples,
        "seqlen": seqlen, "pack": pack, "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    structured = {
        "ratio": ratio, "structure": structure, "shape": shape, "protocol": protocol, "layers": layers,
        "aggregate": aggregate, "fold": fold, "round_to": round_to, "compensate": compensate,
        "compensate_mode": compensate_mode, "hywia_variant": hywia_variant, "hywia_temperature": hywia_temperature,
        "hywia_blend": hywia_blend, "hywia_steps": hywia_steps, "hywia_samples": hywia_samples,
    }  # fmt: skip
    single = {
        "sparsity": sparsity, "pattern": pattern, "spread": spread, "outlier": outlier, "compare": compare,
        "mode": mode, "damp": damp, "block": block, "ignore": ignore,
    }  # fmt: skip
    sparse = sparse_config(recipe, shared, single, structured)
    config = sparse or read_config(PruneConfig, recipe, shared | structured)
    recovery = recovery_config(recover, recover_recipe, recover_data, recover_steps)
    if out_dir is None and not dry_run:
        raise ValueError("give --out DIR for the checkpoint, or --dry-run for the plan alone")
    options = JobOptions(
        source=model, out=None if dry_run else out_dir, overwrite=overwrite,
        dtype=parse_dtype(dtype), compute_dtype=parse_compute_dtype(compute_dtype, dtype, device),
        device=parse_device(device),
        eval_text=None if eval_text == "none" else eval_text, eval_seqlen=eval_seqlen, eval_windows=eval_windows,
        speed=speed, statistics=statistics, proof=proof, prompt=prompt, trust_remote_code=trust_remote_code,
        recover=recovery,
    )  # fmt: skip
    if sparse:
        prune_sparsely(sparse, options)
        return
    result = run_job(run, config, options)
    if isinstance(result, DryRun):
        tables.show_plan(out, result.report)
        if result.report.scores.blend is not None:
            tables.show_blends(out, result.report)
        tables.show_times(out, result.seconds)
        return
    tables.show_target(out, result.report)
    if result.report.compensation is not None:
        tables.show_compensation(out, result.report, result.pruned.params)
    tables.show_result(out, result, title=f"{config.method} on {model}")
    if result.recovered is not None:
        tables.show_recovery(out, result.recovered.report, result.pruned, result.recovered.after, title="recovery")
    show_smoke_test(eval_text, config.calibration if config.calibrates else None)
    tables.show_checkpoint(out, result.saved, prompt, result.text)


def prune_sparsely(config: SparseConfig, options: JobOptions) -> None:
    """Run the job and show its result; without ``options.out`` the plan alone."""
    from pruneengine.cli.tables import sparse as tables_sparse
    from pruneengine.cli.tables import structured as tables
    from pruneengine.jobs.prune_sparse import SparseDryRun, calibrates, run
    from pruneengine.report.values.sparse import speed_notes

    result = run_job(run, config, options)
    tables_sparse.show_sparse_target(out, result.report.plan)
    if isinstance(result, SparseDryRun):
        tables_sparse.show_sparsities(out, result.report.plan)
        tables.show_times(out, result.seconds)
        return
    tables_sparse.show_sparse_result(out, result, title=f"{config.method} on {options.source}")
    tables.show_times(out, result.seconds)
    for note in speed_notes(result.report.plan):
        out.print(note)
    show_smoke_test(options.eval_text, config.calibration if calibrates(result.report.config) else None)
    tables.show_checkpoint(out, result.saved, options.prompt, result.text)
