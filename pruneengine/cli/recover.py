"""The verb recover: LoRA after pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pruneengine.cli.app import (
    ComputeDtype,
    Device,
    Dtype,
    EvalSeqlen,
    EvalWindows,
    Model,
    Overwrite,
    Proof,
    Recipe,
    Trust,
    given,
    out,
    parse_compute_dtype,
    parse_device,
    parse_dtype,
    run_job,
    show_smoke_test,
)


def recover(
    model: Model,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the recovered checkpoint goes.")],
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="alpaca, an instruction or text file, builtin, c4:2000, ...")
    ] = None,
    recipe: Recipe = None,
    rows: Annotated[int | None, typer.Option(help="At most this many rows or windows.")] = None,
    val_rows: Annotated[int | None, typer.Option(help="Rows for validation (2000, at most 10%); 0 for none.")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="The same as a fraction.")] = None,
    cutoff: Annotated[int | None, typer.Option(help="Tokens a row (256).")] = None,
    targets: Annotated[str | None, typer.Option(help="Linears with an adapter: q_proj,v_proj or re:... (all).")] = None,
    lora_r: Annotated[int | None, typer.Option(help="Rank (8).")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Scale (16).")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="Dropout (0.05).")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (1e-4).")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows (2).")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Exactly this many steps instead.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows a step (64).")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Rows a forward pass (4).")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of rising rate (100, at most a tenth).")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between validations and checkpoints (100).")] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Less memory, a third slower.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="Dense model to imitate too.")] = None,
    distill_weight: Annotated[float | None, typer.Option(help="Share of the imitation, 0 to 1 (0.5).")] = None,
    distill_temperature: Annotated[float | None, typer.Option(help="Softening of both (2).")] = None,
    distill_topk: Annotated[int | None, typer.Option(help="Logits of the teacher told apart (64).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of adapters, order and dropout.")] = None,
    eval_text: Annotated[
        str, typer.Option(metavar="SPEC", help="Text of the perplexity before and after; none for none.")
    ] = "builtin-eval",
    eval_seqlen: EvalSeqlen = 256,
    eval_windows: EvalWindows = None,
    proof: Proof = True,
    overwrite: Overwrite = False,
    dtype: Dtype = "float32",
    compute_dtype: ComputeDtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
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


def _config(recipe: Path | None, named: dict[str, Any]):
    from pruneengine.recovery import RecoverConfig, read_recovery_recipe

    values = (read_recovery_recipe(recipe) if recipe else {}) | named
    if "data" not in values:
        raise ValueError("give --data SPEC (or a --recipe that holds it): alpaca, a file, or builtin for a smoke test")
    return RecoverConfig.from_dict(values)
