"""The verb search: the best plan found, applied and saved as by prune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pruneengine.cli.app import (
    ComputeDtype,
    Device,
    Dtype,
    EvalSeqlen,
    Layers,
    Model,
    Overwrite,
    Proof,
    Ratio,
    Recipe,
    RoundTo,
    Shape,
    Trust,
    flags,
    given,
    out,
    parse_compute_dtype,
    parse_device,
    parse_dtype,
    read_config,
    run_job,
)
from pruneengine.cli.options import dsa
from pruneengine.cli.options.recovery import Recover, RecoverData, RecoverRecipe, RecoverSteps, recovery_config
from pruneengine.cli.tables.search import show_dsa

if TYPE_CHECKING:
    from pruneengine.jobs.options import SearchOptions


def search(
    model: Model,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the checkpoint goes.")],
    method: Annotated[str, typer.Option(help="adapruner, or dsa: sparsity by an allocation function.")] = "adapruner",
    ratio: Ratio = None,
    trials: Annotated[int | None, typer.Option(help="Candidates to evaluate (100; dsa: 2000).")] = None,
    shape: Shape = None,
    structure: Annotated[str | None, typer.Option(help="Kinds of units: mlp,heads.")] = None,
    layers: Layers = None,
    round_to: RoundTo = None,
    sampler: Annotated[str | None, typer.Option(help="tpe or random; dsa: evolution or random.")] = None,
    stop: Annotated[str | None, typer.Option(help="p-value at which a trial is stopped early (0.1), or none.")] = None,
    calibration: Annotated[str | None, typer.Option(metavar="SPEC", help="Text of the calibration pool.")] = None,
    pool: Annotated[int | None, typer.Option(help="Samples in the pool (128).")] = None,
    lengths: Annotated[str | None, typer.Option(help="Tokens a sample, comma separated (128).")] = None,
    counts: Annotated[str | None, typer.Option(help="Sizes of subsets, comma separated (16,32,64,128).")] = None,
    selectors: Annotated[str | None, typer.Option(help="random-K,low-loss,middle-loss,high-loss,diverse.")] = None,
    search_text: Annotated[str | None, typer.Option("--eval", metavar="SPEC", help="Text of the objective.")] = None,
    seqlen: Annotated[int | None, typer.Option(help="Tokens a window of it (256; dsa: 128).")] = None,
    windows: Annotated[int | None, typer.Option(help="Windows that trials see (16); dsa: in all (50).")] = None,
    held_out: Annotated[float | None, typer.Option(help="Windows only for finalists (16); dsa: share (0.2).")] = None,
    finalists: Annotated[int | None, typer.Option(help="Trials compared there (5).")] = None,
    compensate: Annotated[str | None, typer.Option(help="Choices for the winner: none,bias,least-squares.")] = None,
    together: Annotated[int | None, typer.Option(help="Candidates that share a forward pass (1).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the pool, the sampler and random subsets.")] = None,
    sparsity: dsa.Sparsity = None,
    pruner: dsa.Pruner = None,
    pattern: dsa.PatternOption = None,
    population: dsa.Population = None,
    plateau: dsa.Plateau = None,
    nsamples: dsa.Nsamples = None,
    calibration_seqlen: dsa.CalibrationSeqlen = None,
    correlate: dsa.Correlate = None,
    mode: dsa.Mode = None,
    ignore: dsa.Ignore = None,
    recipe: Recipe = None,
    recover: Recover = False,
    recover_data: RecoverData = None,
    recover_steps: RecoverSteps = None,
    recover_recipe: RecoverRecipe = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="Of the Optuna study (the method).")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="journal:FILE or a database URL (a journal beside --out).")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes on this study.")] = 1,
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which no trial is begun.")] = None,
    eval_text: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Text of the report, which is never searched on [none].")
    ] = None,
    eval_seqlen: EvalSeqlen = 512,
    eval_windows: Annotated[int | None, typer.Option(help="Windows of that text.")] = 64,
    proof: Proof = True,
    overwrite: Overwrite = False,
    dtype: Dtype = "float32",
    compute_dtype: ComputeDtype = None,
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Search calibration data, metric and allocation, or an allocation function; save the best plan, and prune by it.

    Run it again to go on after a stop.
    """
    from pruneengine.cli.tables import search as tables_search
    from pruneengine.cli.tables import structured as tables
    from pruneengine.jobs.options import SearchOptions
    from pruneengine.jobs.search import run
    from pruneengine.search.adapruner.config import AdaPrunerConfig

    if method not in ("adapruner", "dsa"):
        raise ValueError(f"unknown method {method!r}; choose from adapruner, dsa")
    shared = {
        "trials": trials, "sampler": sampler, "calibration": calibration, "search_text": search_text, "seqlen": seqlen,
        "windows": windows, "finalists": finalists, "seed": seed,
    }  # fmt: skip
    structured = {
        "ratio": ratio, "shape": shape, "structure": structure, "layers": layers, "round_to": round_to, "pool": pool,
        "lengths": lengths, "counts": counts, "selectors": selectors, "compensate": compensate, "together": together,
    }  # fmt: skip
    own = {
        "sparsity": sparsity, "pruner": pruner, "pattern": pattern, "population": population, "plateau": plateau,
        "nsamples": nsamples, "calibration_seqlen": calibration_seqlen, "correlate": correlate, "mode": mode,
        "ignore": ignore,
    }  # fmt: skip
    options = SearchOptions(
        source=model, out=out_dir, overwrite=overwrite, dtype=parse_dtype(dtype),
        compute_dtype=parse_compute_dtype(compute_dtype, dtype, device), device=parse_device(device),
        study=study or method, storage=storage, workers=workers, time_limit=time_limit,
        eval_text=None if eval_text == "none" else eval_text, eval_seqlen=eval_seqlen, eval_windows=eval_windows,
        proof=proof, trust_remote_code=trust_remote_code,
        recover=recovery_config(recover, recover_recipe, recover_data, recover_steps),
    )  # fmt: skip
    level = stop if stop in (None, "none") else _p_value(stop)
    if method == "dsa":
        return run_dsa(recipe, shared | own | {"held_out": held_out, "stop": level}, structured, options)
    if odd := given(own):
        raise ValueError(f"{flags(odd)}: options of --method dsa; leave them out")
    count = int(held_out) if held_out is not None and held_out == int(held_out) else held_out
    config = read_config(AdaPrunerConfig, recipe, shared | structured | {"held_out": count}, section="search")
    if level is not None:
        config = replace(config, stop=None if level == "none" else level)
    found = run_job(run, config, options)
    tables_search.show_search(out, found)
    if found.recovered is not None:
        trained = found.recovered
        tables.show_recovery(out, trained.report, found.pruned, trained.after, title="recovery")
    tables.show_checkpoint(out, found.saved)


def _p_value(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"stop must be a p-value or none, got {text!r}") from None


def run_dsa(
    recipe: Path | None,
    own: Mapping[str, Any],
    structured: Mapping[str, Any],
    options: SearchOptions,
) -> None:
    """Run the job and print what it found; None among the values was not given.

    Args:
        recipe: whose ``search`` section holds options; ``own`` wins.
        own: options of :class:`pruneengine.search.dsa.config.DsaConfig`; plateau may be "none".
        structured: options of the search over structured plans, which are refused.
        options: of the job.

    Raises:
        ValueError: options of the other search, or values that are refused.
    """
    from pruneengine.common.recipes import read_recipe
    from pruneengine.jobs.search_dsa import run
    from pruneengine.search.dsa.config import DsaConfig

    if odd := given(structured):
        raise ValueError(
            f"{flags(odd)}: options of --method adapruner, which removes heads and channels; leave them out"
        )
    values = (read_recipe(recipe, "search") if recipe else {}) | given(own)
    values |= {name: None for name in ("plateau", "stop") if values.get(name) == "none"}
    if isinstance(values.get("plateau"), str):
        values["plateau"] = _whole(values["plateau"])
    if "sparsity" not in values and "pattern" not in values:
        raise ValueError("give --sparsity S, or --pattern N:M (or a --recipe that holds one)")
    config = DsaConfig.from_dict(values)
    found = run_job(run, config, options)
    show_dsa(out, found)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"plateau must be a number of trials or none, got {text!r}") from None
