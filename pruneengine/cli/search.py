"""The verb search, over plans (adapruner) and over allocation functions (dsa)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneengine.cli.app import (
    flags,
    given,
    out,
    parse_compute_dtype,
    parse_device,
    parse_dtype,
    read_values,
    renamed,
    require_ratio,
    run_job,
)
from pruneengine.cli.options import dsa, recovery, shared, structured
from pruneengine.cli.options import search as own
from pruneengine.common.errors import InputError

if TYPE_CHECKING:
    from pruneengine.jobs.options import SearchOptions
    from pruneengine.search.adapruner.config import AdaPrunerConfig
    from pruneengine.search.dsa.config import DsaConfig

METHODS = ("adapruner", "dsa")


def search(
    model: shared.Model,
    out_dir: own.Out,
    method: own.Method = "adapruner",
    ratio: own.Ratio = None,
    sparsity: dsa.Sparsity = None,
    trials: own.Trials = None,
    calibration: own.Calibration = None,
    search_text: own.SearchText = None,
    recipe: shared.Recipe = None,
    dtype: shared.Dtype = "float32",
    device: shared.Device = "cpu",
    overwrite: shared.Overwrite = False,
    sampler: own.Sampler = None,
    seqlen: own.Seqlen = None,
    stop: own.Stop = None,
    finalists: own.Finalists = None,
    seed: own.Seed = None,
    study: own.Study = None,
    storage: own.Storage = None,
    workers: own.Workers = 1,
    time_limit: own.TimeLimit = None,
    windows: own.Windows = None,
    held_out_windows: own.HeldOutWindows = None,
    held_out: own.HeldOut = None,
    pool: own.Pool = None,
    lengths: own.Lengths = None,
    counts: own.Counts = None,
    selectors: own.Selectors = None,
    compensate: own.Compensate = None,
    together: own.Together = None,
    kinds: structured.SearchedKinds = None,
    structure: structured.Structure = None,
    shape: structured.SearchedShape = None,
    layers: structured.Layers = None,
    round_to: structured.RoundTo = None,
    pruner: dsa.Pruner = None,
    pattern: dsa.PatternOption = None,
    ignore: dsa.Ignore = None,
    population: dsa.Population = None,
    plateau: dsa.Plateau = None,
    total_windows: dsa.TotalWindows = None,
    held_out_share: dsa.HeldOutShare = None,
    nsamples: dsa.Nsamples = None,
    calibration_seqlen: dsa.CalibrationSeqlen = None,
    correlate: dsa.Correlate = None,
    mode: dsa.Mode = None,
    recover: recovery.Recover = False,
    recover_data: recovery.RecoverData = None,
    recover_steps: recovery.RecoverSteps = None,
    recover_recipe: recovery.RecoverRecipe = None,
    eval_text: own.ReportText = None,
    eval_seqlen: shared.EvalSeqlen = 512,
    eval_windows: own.ReportWindows = 64,
    compute_dtype: shared.ComputeDtype = None,
    proof: shared.Proof = True,
    trust_remote_code: shared.Trust = False,
) -> None:
    """Search calibration data, metric and allocation, or an allocation function; save the best plan, and prune by it.

    Run it again to go on after a stop.
    """
    from pruneengine.jobs.options import SearchOptions

    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    for_both = {
        "trials": trials, "sampler": sampler, "calibration": calibration, "search_text": search_text, "seqlen": seqlen,
        "stop": stop, "finalists": finalists, "seed": seed,
    }  # fmt: skip
    for_plans = {
        "ratio": ratio, "shape": shape, "kinds": renamed(kinds, structure, "--kinds and --structure"),
        "layers": layers, "round_to": round_to, "held_out_windows": held_out_windows, "pool": pool, "lengths": lengths,
        "counts": counts, "selectors": selectors, "compensate": compensate, "together": together,
    }  # fmt: skip
    for_functions = {
        "sparsity": sparsity, "pruner": pruner, "pattern": pattern, "population": population, "plateau": plateau,
        "total_windows": total_windows, "held_out_share": held_out_share, "nsamples": nsamples,
        "calibration_seqlen": calibration_seqlen, "correlate": correlate, "mode": mode, "ignore": ignore,
    }  # fmt: skip
    options = SearchOptions(
        source=model, out=out_dir, overwrite=overwrite, dtype=parse_dtype(dtype),
        compute_dtype=parse_compute_dtype(compute_dtype, dtype, device), device=parse_device(device),
        study=study or method, storage=storage, workers=workers, time_limit=time_limit,
        eval_text=None if eval_text == "none" else eval_text, eval_seqlen=eval_seqlen, eval_windows=eval_windows,
        proof=proof, trust_remote_code=trust_remote_code,
        recover=recovery.recovery_config(recover, recover_recipe, recover_data, recover_steps),
    )  # fmt: skip
    if method == "dsa":
        if odd := given(for_plans):
            raise InputError(
                f"{flags(odd)}: options of --method adapruner, which removes heads and channels; leave them out"
            )
        # --windows and --held-out meant both searches' numbers once.
        for_functions |= {
            "total_windows": renamed(total_windows, windows, "--total-windows and --windows"),
            "held_out_share": renamed(held_out_share, held_out, "--held-out-share and --held-out"),
        }
        _search_functions(dsa_config(recipe, for_both | for_functions), options)
    else:
        if odd := given(for_functions):
            raise InputError(f"{flags(odd)}: options of --method dsa; leave them out")
        former = int(held_out) if held_out is not None and held_out == int(held_out) else held_out
        for_plans |= {
            "windows": windows,
            "held_out_windows": renamed(held_out_windows, former, "--held-out-windows and --held-out"),
        }
        _search_plans(adapruner_config(recipe, for_both | for_plans), options)


def adapruner_config(recipe: Path | None, options: Mapping[str, Any]) -> AdaPrunerConfig:
    """Return the config of a search over plans.

    Args:
        recipe: whose ``search`` section holds options; ``options`` win.
        options: by their names on the command line; None was not given, and stop may be "none".

    Raises:
        ValueError: no ratio, or values that are refused.
    """
    from pruneengine.search.adapruner.config import AdaPrunerConfig

    stop = options["stop"]
    values = read_values(recipe, "search", {**options, "stop": None})
    config = AdaPrunerConfig.from_dict(require_ratio(values, ", or --method dsa with --sparsity S"))
    if stop is None:
        return config
    return replace(config, stop=None if stop == "none" else _p_value(stop))


def dsa_config(recipe: Path | None, options: Mapping[str, Any]) -> DsaConfig:
    """Return the config of a search for an allocation function.

    Args:
        recipe: whose ``search`` section holds options; ``options`` win.
        options: by their names on the command line; None was not given, and plateau and stop may be "none".

    Raises:
        ValueError: neither sparsity nor pattern, or values that are refused.
    """
    from pruneengine.search.dsa.config import DsaConfig

    values = read_values(recipe, "search", options)
    for name, parse in (("plateau", _whole), ("stop", _p_value)):
        if values.get(name) == "none":
            values[name] = None
        elif isinstance(values.get(name), str):
            values[name] = parse(values[name])
    if "sparsity" not in values and "pattern" not in values:
        raise InputError("give --sparsity S, or --pattern N:M (or a --recipe that holds one)")
    return DsaConfig.from_dict(values)


def _search_plans(config: AdaPrunerConfig, options: SearchOptions) -> None:
    """Run the search over plans and show its result."""
    from pruneengine.cli.tables import structured as tables
    from pruneengine.cli.tables.search import show_search
    from pruneengine.jobs.search import run

    job = run_job(run, config, options)
    show_search(out, job)
    if job.recovered is not None:
        tables.show_recovery(out, job.recovered.report, job.pruned, job.recovered.after, title="recovery")
    tables.show_checkpoint(out, job.saved)


def _search_functions(config: DsaConfig, options: SearchOptions) -> None:
    """Run the search for an allocation function and show its result."""
    from pruneengine.cli.tables.search import show_dsa
    from pruneengine.jobs.search_dsa import run

    show_dsa(out, run_job(run, config, options))


def _p_value(text: str) -> float:
    """Return a p-value; ValueError for other words."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"stop must be a p-value or none, got {text!r}") from None


def _whole(text: str) -> int:
    """Return a number of trials; ValueError for other words."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"plateau must be a number of trials or none, got {text!r}") from None
