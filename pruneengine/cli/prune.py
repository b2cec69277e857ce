"""The verb prune, structured and sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pruneengine.cli.app import (
    out,
    parse_compute_dtype,
    parse_device,
    parse_dtype,
    read_values,
    renamed,
    require_ratio,
    run_job,
    show_smoke_test,
)
from pruneengine.cli.options import prune as own
from pruneengine.cli.options import recovery, shared, sparse, structured
from pruneengine.common.errors import InputError

if TYPE_CHECKING:
    from pruneengine.jobs.options import JobOptions
    from pruneengine.sparse.config import SparseConfig
    from pruneengine.structured.config import PruneConfig


def prune(
    model: shared.Model,
    out_dir: own.Out = None,
    method: own.Method = None,
    ratio: structured.Ratio = None,
    sparsity: sparse.Sparsity = None,
    allocation: own.Allocation = None,
    calibration: own.Calibration = None,
    nsamples: own.Nsamples = None,
    seqlen: own.Seqlen = None,
    recipe: shared.Recipe = None,
    dtype: shared.Dtype = "float32",
    device: shared.Device = "cpu",
    overwrite: shared.Overwrite = False,
    dry_run: own.DryRun = False,
    kinds: structured.Kinds = None,
    structure: structured.Structure = None,
    shape: structured.Shape = None,
    layers: structured.Layers = None,
    protocol: structured.Protocol = None,
    aggregate: structured.Aggregate = None,
    fold: structured.Fold = None,
    round_to: structured.RoundTo = None,
    compensate: structured.Compensate = None,
    compensate_mode: structured.CompensateMode = None,
    hywia_variant: structured.HywiaVariant = None,
    hywia_temperature: structured.HywiaTemperature = None,
    hywia_blend: structured.HywiaBlend = None,
    hywia_steps: structured.HywiaSteps = None,
    hywia_samples: structured.HywiaSamples = None,
    pattern: sparse.PatternOption = None,
    spread: sparse.Spread = None,
    outlier: sparse.Outlier = None,
    compare: sparse.Compare = None,
    mode: sparse.Mode = None,
    damp: sparse.Damp = None,
    block: sparse.Block = None,
    ignore: sparse.Ignore = None,
    pack: own.Pack = None,
    batch_size: own.BatchSize = None,
    seed: own.Seed = None,
    statistics: own.StatisticsFile = None,
    recover: recovery.Recover = False,
    recover_data: recovery.RecoverData = None,
    recover_steps: recovery.RecoverSteps = None,
    recover_recipe: recovery.RecoverRecipe = None,
    eval_text: own.EvalText = "builtin-eval",
    eval_seqlen: shared.EvalSeqlen = 256,
    eval_windows: shared.EvalWindows = None,
    compute_dtype: shared.ComputeDtype = None,
    speed: own.Speed = False,
    prompt: own.Prompt = None,
    proof: shared.Proof = True,
    trust_remote_code: shared.Trust = False,
) -> None:
    """Prune a model, save it, prove that it reloads, and show dense beside pruned."""
    from pruneengine.jobs.options import JobOptions
    from pruneengine.structured.config import PruneConfig

    for_both = {
        "method": method, "allocation": allocation, "calibration": calibration, "nsamples": nsamples,
        "seqlen": seqlen, "pack": pack, "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    for_units = {
        "ratio": ratio, "kinds": renamed(kinds, structure, "--kinds and --structure"), "shape": shape,
        "protocol": protocol, "layers": layers, "aggregate": aggregate, "fold": fold, "round_to": round_to,
        "compensate": compensate, "compensate_mode": compensate_mode, "hywia_variant": hywia_variant,
        "hywia_temperature": hywia_temperature, "hywia_blend": hywia_blend, "hywia_steps": hywia_steps,
        "hywia_samples": hywia_samples,
    }  # fmt: skip
    for_weights = {
        "sparsity": sparsity, "pattern": pattern, "spread": spread, "outlier": outlier, "compare": compare,
        "mode": mode, "damp": damp, "block": block, "ignore": ignore,
    }  # fmt: skip
    sparse_config = sparse.sparse_config(recipe, for_both, for_weights, for_units)
    config = sparse_config or PruneConfig.from_dict(
        require_ratio(
            read_values(recipe, "config", for_both | for_units),
            " for structured pruning, or --sparsity S or --pattern N:M for sparse pruning",
        )
    )
    if out_dir is None and not dry_run:
        raise InputError("give --out DIR for the checkpoint, or --dry-run for the plan alone")
    options = JobOptions(
        source=model, out=None if dry_run else out_dir, overwrite=overwrite,
        dtype=parse_dtype(dtype), compute_dtype=parse_compute_dtype(compute_dtype, dtype, device),
        device=parse_device(device),
        eval_text=None if eval_text == "none" else eval_text, eval_seqlen=eval_seqlen, eval_windows=eval_windows,
        speed=speed, statistics=statistics, proof=proof, prompt=prompt, trust_remote_code=trust_remote_code,
        recover=recovery.recovery_config(recover, recover_recipe, recover_data, recover_steps),
    )  # fmt: skip
    if isinstance(config, PruneConfig):
        _prune_units(config, options)
    else:
        _prune_weights(config, options)


def _prune_units(config: PruneConfig, options: JobOptions) -> None:
    """Run the structured job and show its result; in a dry run the plan alone."""
    from pruneengine.cli.tables import structured as tables
    from pruneengine.jobs.prune import DryRun, run

    result = run_job(run, config, options)
    if isinstance(result, DryRun):
        tables.show_plan(out, result.report)
        if result.report.scores.blend is not None:
            tables.show_blends(out, result.report)
        tables.show_times(out, result.seconds)
        return
    tables.show_target(out, result.report)
    if result.report.compensation is not None:
        added = result.pruned.params - result.report.plan.params_after
        tables.show_compensation(out, result.report.compensation, added)
    tables.show_result(out, result, title=f"{config.method} on {options.source}")
    if result.recovered is not None:
        tables.show_recovery(out, result.recovered.report, result.pruned, result.recovered.after, title="recovery")
    show_smoke_test(options.eval_text, config.calibration if config.calibrates else None)
    tables.show_checkpoint(out, result.saved, options.prompt, result.text)


def _prune_weights(config: SparseConfig, options: JobOptions) -> None:
    """Run the sparse job and show its result; in a dry run the plan alone."""
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
