"""The command line: inspect, prune, eval, bench."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
except ImportError as missing:
    sys.exit(f"error: the command line needs {missing.name}: pip install 'pruneengine[cli]'")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune large language models.",
)
# No markup: paths and generated text hold brackets of their own.
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a GGUF file, or a hub name.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16: the weights in memory and on disk.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the model.")]


@app.command()
def inspect(
    model: Model,
    nsamples: Annotated[int, typer.Option(help="Calibration samples to predict for.")] = 32,
    seqlen: Annotated[int, typer.Option(help="Tokens a sample.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Samples a forward pass.")] = 8,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """What can be pruned, what would be left, what it would cost and what will load the result. Loads no weights."""
    from pruneengine import tables
    from pruneengine.fusion import methods
    from pruneengine.loading import load_skeleton
    from pruneengine.plan import default_rounding
    from pruneengine.predict import measure_flops, predict
    from pruneengine.structure import find_groups

    kind, device = _dtype(dtype), _device(device)
    structure = find_groups(load_skeleton(model, trust_remote_code))
    tables.show_structure(out, model, structure, default_rounding(structure))
    tables.show_sizes(out, structure, kind.itemsize)
    flops = measure_flops(kind, device)
    title = f"statistics on {nsamples} x {seqlen} tokens (estimate, at {flops / 1e9:.0f} GFLOP/s measured here)"
    predictions = [predict(structure, m, nsamples, seqlen, batch_size, kind.itemsize, flops) for m in methods()]
    tables.show_predictions(out, predictions, title)
    tables.show_loaders(out)


@app.command()
def prune(
    model: Model,
    out_dir: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the checkpoint goes.")] = None,
    method: Annotated[str | None, typer.Option(help="param_first, vectorize, hywia, wanda, ...")] = None,
    ratio: Annotated[float | None, typer.Option(help="Fraction of the prunable parameters to remove.")] = None,
    structure: Annotated[str | None, typer.Option(help="Kinds of units: mlp,heads,layers.")] = None,
    allocation: Annotated[str | None, typer.Option(help="uniform, global or unstructured.")] = None,
    shape: Annotated[str | None, typer.Option(help="uniform (loads anywhere) or per-layer.")] = None,
    protocol: Annotated[str | None, typer.Option(help="engine, or llm-pruner: the ratio is inside --layers.")] = None,
    layers: Annotated[str | None, typer.Option(metavar="A:B", help="Only layers A to B-1 may change.")] = None,
    aggregate: Annotated[str | None, typer.Option(help="sum, mean, prod, max, first or last member.")] = None,
    fold: Annotated[str | None, typer.Option(help="gqa, or llm-pruner: its misaligned fold, to compare.")] = None,
    round_to: Annotated[int | None, typer.Option(help="MLP widths become multiples of this.")] = None,
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
    recipe: Annotated[Path | None, typer.Option(help="YAML file of these options; flags win.")] = None,
    statistics: Annotated[Path | None, typer.Option(help="File to reuse statistics from, or to keep them in.")] = None,
    eval_text: Annotated[
        str, typer.Option(metavar="SPEC", help="Text of the perplexity; none for none.")
    ] = "builtin-eval",
    eval_seqlen: Annotated[int, typer.Option(help="Tokens a window of that text.")] = 256,
    eval_windows: Annotated[int | None, typer.Option(help="Windows of that text (16).")] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens/s (keeps a dense copy in memory).")] = False,
    prompt: Annotated[str | None, typer.Option(help="Let the reloaded checkpoint continue this.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the per-layer plan and stop.")] = False,
    proof: Annotated[bool, typer.Option(help="Reopen the checkpoint in a fresh process and compare.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
) -> None:
    """Prune a model, save it, prove that it reloads, and show dense beside pruned."""
    from pruneengine import tables
    from pruneengine.job import JobOptions, run

    given = {
        "method": method, "ratio": ratio, "structure": structure,
        "allocation": allocation, "shape": shape, "protocol": protocol, "layers": layers,
        "aggregate": aggregate, "fold": fold, "round_to": round_to, "calibration": calibration,
        "nsamples": nsamples, "seqlen": seqlen, "pack": pack, "batch_size": batch_size, "seed": seed,
        "hywia_variant": hywia_variant, "hywia_temperature": hywia_temperature, "hywia_blend": hywia_blend,
        "hywia_steps": hywia_steps, "hywia_samples": hywia_samples,
    }  # fmt: skip
    config = _config(recipe, {name: value for name, value in given.items() if value is not None})
    if out_dir is None and not dry_run:
        raise ValueError("give --out DIR for the checkpoint, or --dry-run for the plan alone")
    options = JobOptions(
        source=model, out=None if dry_run else out_dir, overwrite=overwrite,
        dtype=_dtype(dtype), device=_device(device),
        eval_text=None if eval_text == "none" else eval_text, eval_seqlen=eval_seqlen, eval_windows=eval_windows,
        speed=speed, statistics=statistics, proof=proof, prompt=prompt, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    result = run(config, options, say=lambda line: err.print(line, style="dim"))
    for warning in result.warnings:
        err.print(f"warning: {warning}", style="yellow")
    if dry_run:
        tables.show_plan(out, result.report)
        if result.report.scores.blend is not None:
            tables.show_blends(out, result.report)
        tables.show_times(out, result.seconds)
        return
    tables.show_target(out, result.report)
    tables.show_result(out, result, title=f"{config.method} on {model}")
    if eval_text.startswith("builtin") or config.calibration == "builtin":
        out.print(tables.SMOKE_TEXT)
    if result.saved.proof is not None:
        checked = result.saved.proof
        out.print(
            f"reloaded in a fresh process with {checked.loader}: logits within {checked.max_difference:.1e}, "
            f"next tokens equal at {checked.argmax_agreement:.1%} of positions"
        )
    if result.text is not None:
        out.print(f"there it continues {prompt!r}: {result.text!r}")
    out.print(f"saved {result.saved.path} ({result.saved.bytes / 1e6:.1f} MB)")


@app.command("eval")
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

    kind, device = _dtype(dtype), _device(device)
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


@app.command()
def bench(
    ops: Annotated[str | None, typer.Option(help="Names, comma separated (all); see --list.")] = None,
    shapes: Annotated[str, typer.Option(help="headline, llama-7b, smollm2 or ROWSxCOLUMNS.")] = "headline",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32: of what the ops read.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    providers: Annotated[str | None, typer.Option(help="reference,compile,cpp,triton,cuda (the device's).")] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; slow providers take part in fewer.")] = 7,
    threads: Annotated[str, typer.Option(help="CPU threads; 1,2 measures both.")] = "1",
    results: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of ops.csv.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the ops and their cases, and stop.")] = False,
) -> None:
    """Time the ops against eager torch and the machine's limits, each proved correct first."""
    from pruneengine.bench import runner

    if show:
        out.print(*runner.describe(), sep="\n")
        return
    options = runner.BenchOptions.parse(
        ops=ops, shapes=shapes, dtype=dtype, device=device, providers=providers,
        rounds=rounds, threads=threads, results=results,
    )  # fmt: skip
    raise typer.Exit(runner.run(options, say=out.print).exit_code)


def _config(recipe: Path | None, given: dict[str, Any]):
    from pruneengine.config import PruneConfig, read_recipe

    values = (read_recipe(recipe) if recipe else {}) | given
    if "ratio" not in values:
        raise ValueError("give --ratio R (or a --recipe that holds one)")
    return PruneConfig.from_dict(values)


def _dtype(name: str):
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"unknown dtype {name!r}; choose from {', '.join(known)}")
    return known[name]


def _device(name: str) -> str:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from None
    return name


def main() -> None:
    """Run the command line. What the user can mend is one line on standard error and exit status 2."""
    from pruneengine.progress import set_progress

    set_progress(True)
    if not sys.stderr.isatty():
        # The loaders' own bars redraw one line, which fills a log; ours writes a line every few seconds there.
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        err.print(f"error: {' '.join(str(error).split())}", style="bold red")
        sys.exit(2)


if __name__ == "__main__":
    main()
