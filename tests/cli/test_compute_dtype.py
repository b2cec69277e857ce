"""What a command computes in is what it was told, whatever the CPU can do; both kinds of CPU are played here."""

import json

import pytest
import torch

from pruneengine.model.decoder import autocast
from tests.cli.test_prune import run


@pytest.fixture(params=["float32 alone", "bfloat16 too"])
def fastest(request, monkeypatch):
    """The fastest dtype of a CPU of either kind."""
    dtype = torch.bfloat16 if request.param == "bfloat16 too" else torch.float32
    monkeypatch.setattr("pruneengine.evaluation.perplexity.best_dtype", lambda device: dtype)
    return str(dtype).removeprefix("torch.")


def computed_by_eval(folder, tmp_path, *options):
    kept = tmp_path / "results.json"
    windows = ("--text", folder / "text.txt", "--seqlen", 32, "--windows", 2)
    done = run("eval", folder / "model", *windows, "--out", kept, *options)
    assert done.returncode == 0, done.stderr
    (text,) = json.loads(kept.read_text())["texts"].values()
    assert text["dtype"] in done.stdout
    return text["dtype"]


@pytest.mark.parametrize("options", [(), ("--dtype", "float32"), ("--compute-dtype", "float32")])
def test_float32_is_float32_on_either_cpu(folder, tmp_path, fastest, options):
    assert computed_by_eval(folder, tmp_path, *options) == "float32"


def test_auto_is_the_fastest_of_the_cpu(folder, tmp_path, fastest):
    assert computed_by_eval(folder, tmp_path, "--compute-dtype", "auto") == fastest


def test_weights_in_half_precision_compute_in_it(folder, tmp_path, fastest):
    assert computed_by_eval(folder, tmp_path, "--dtype", "bfloat16", "--compute-dtype", "auto") == "bfloat16"


def test_pruning_and_recovery_compute_in_what_they_are_told(folder, tmp_path, fastest):
    texts = ("--eval-text", folder / "text.txt", "--eval-seqlen", 32, "--eval-windows", 2, "--no-proof")
    recipe = tmp_path / "small.yaml"
    recipe.write_text("{cutoff: 24, batch: 4, micro_batch: 2, val_rows: 4}")
    training = ("--recover", "--recover-data", folder / "text.txt", "--recover-steps", 2, "--recover-recipe", recipe)
    for asked, computed in ((None, "float32"), ("auto", fastest)):
        out = tmp_path / str(asked)
        dtype = () if asked is None else ("--compute-dtype", asked)
        options = ("--method", "magnitude_l1", "--ratio", 0.3, "--out", out, *texts, *training, *dtype)
        done = run("prune", folder / "model", *options)
        assert done.returncode == 0, done.stderr
        report = json.loads((out / "report.json").read_text())
        assert report["perplexity dtype"] == computed
        assert report["recovery"]["computed in"] == computed
        assert ("compute_dtype" in (out / "recipe.yaml").read_text()) == (asked is not None)


@pytest.mark.parametrize("verb", ["eval", "prune", "search", "recover"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compute-dtype", "float64"), "unknown dtype 'float64'"),
        (("--dtype", "bfloat16", "--compute-dtype", "float32"), "dtype=torch.float32 for a model in torch.bfloat16"),
    ],
)
def test_a_dtype_that_cannot_be_is_refused_before_the_model_is_loaded(folder, tmp_path, verb, options, message):
    out = () if verb == "eval" else ("--out", tmp_path / "out")
    needed = {"prune": ("--ratio", 0.2), "search": ("--ratio", 0.2), "recover": ("--data", folder / "text.txt")}
    done = run(verb, folder / "model", *out, *needed.get(verb, ()), *options)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "loading" not in done.stderr


def test_autocast_casts_float32_weights_and_no_others():
    weight, x = torch.ones(2, 2), torch.ones(1, 2)
    with autocast(weight, torch.bfloat16):
        assert torch.nn.functional.linear(x, weight).dtype == torch.bfloat16
    for same in (None, torch.float32):
        with autocast(weight, same):
            assert torch.nn.functional.linear(x, weight).dtype == torch.float32
    with pytest.raises(ValueError, match=r"dtype=torch\.float16 for a model in torch\.bfloat16"):
        autocast(weight.bfloat16(), torch.float16)
