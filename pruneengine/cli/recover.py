"""The verb recover: LoRA after pruning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneengine.cli.app import given, out, parse_compute_dtype, parse_device, parse_dtype, run_job, show_smoke_test
from pruneengine.cli.options import prune, shared
from pruneengine.cli.options import train as own
from pruneengine.common.errors import InputError

if TYPE_CHECKING:
    from pruneengine.recovery import RecoverConfig


def recover(
    model: shared.Model,
    out_dir: own.Out,
    data: own.Data = None,
    recipe: shared.Recipe = None,
    dtype: shared.Dtype = "float32",
    device: shared.Device = "cpu",
    overwrite: shared.Overwrite = False,
    rows: own.Rows = None,
    val_rows: own.ValRows = None,
    val_fraction: own.ValFraction = None,
    cutoff: own.Cutoff = None,
    lr: own.Lr = None,
    epochs: own.Epochs = None,
    max_steps: own.MaxSteps = None,
    batch: own.Batch = None,
    micro_batch: own.MicroBatch = None,
    warmup: own.Warmup = None,
    eval_every: own.EvalEvery = None,
    gradient_checkpointing: own.GradientCheckpointing = None,
    seed: own.Seed = None,
    targets: own.Targets = None,
    lora_r: own.LoraR = None,
    lora_alpha: own.LoraAlpha = None,
    lora_dropout: own.LoraDropout = None,
    teacher: own.Teacher = None,
    distill_weight: own.DistillWeight = None,
    distill_temperature: own.DistillTemperature = None,
    distill_topk: own.DistillTopk = None,
    eval_text: prune.EvalText = "builtin-eval",
    eval_seqlen: shared.EvalSeqlen = 256,
    eval_windows: shared.EvalWindows = None,
    compute_dtype: shared.ComputeDtype = None,
    proof: shared.Proof = True,
    trust_remote_code: shared.Trust = False,
) -> None:
    """Train LoRA adapters on a pruned model, merge them, save, prove, and show before beside after.

    A run that was stopped goes on with the same command.
    """
    from pruneengine.cli.tables import structured as tables
    from pruneengine.jobs.options import RecoverOptions
    from pruneengine.jobs.recover import run

    fields = {
        "data": data, "rows": rows, "val_rows": val_rows, "val_fraction": val_fraction, "cutoff": cutoff,
        "targets": targets, "lora_r": lora_r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "lr": lr,
        "epochs": epochs, "max_steps": max_steps, "batch": batch, "micro_batch": micro_batch, "warmup": warmup,
        "eval_every": eval_every, "gradient_checkpointing": gradient_checkpointing, "teacher": teacher,
        "distill_weight": distill_weight, "distill_temperature": distill_temperature, "distill_topk": distill_topk,
        "seed": seed,
    }  # fmt: skip
    config = _config(recipe, given(fields))
    options = RecoverOptions(
        source=model, out=out_dir, overwrite=overwrite, dtype=parse_dtype(dtype),
        compute_dtype=parse_compute_dtype(compute_dtype, dtype, device), device=parse_device(device),
        eval_text=None if eval_text == "none" else eval_text, eval_seqlen=eval_seqlen, eval_windows=eval_windows,
        proof=proof, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    result = run_job(run, config, options)
    tables.show_recovery(out, result.report, result.before, result.after, title=f"recovery of {model}")
    tables.show_times(out, result.seconds)
    show_smoke_test(options.eval_text, config.data)
    tables.show_checkpoint(out, result.saved)


def _config(recipe: Path | None, named: dict[str, Any]) -> RecoverConfig:
    """Return how to train: the recipe's values and those given on the command line, which win."""
    from pruneengine.recovery import RecoverConfig, read_recovery_recipe

    values = (read_recovery_recipe(recipe) if recipe else {}) | named
    if "data" not in values:
        raise InputError("give --data SPEC (or a --recipe that holds it): alpaca, a file, or builtin for a smoke test")
    return RecoverConfig.from_dict(values)
