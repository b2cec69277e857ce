"""``search --method dsa`` as a user drives it."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

pytest.importorskip("optuna")

from pruneengine.cli.search import dsa_config
from pruneengine.sparse.functions.function import Function, read_metadata
from tests.cli.test_prune import run
from tests.helpers.pages import read


def arguments(texts, out, *more):
    small = ("--nsamples", 8, "--calibration-seqlen", 16, "--seqlen", 24, "--total-windows", 10, "--population", 5)
    report = ("--eval-text", texts / "report.txt", "--eval-seqlen", 32, "--eval-windows", 4)
    text = ("--calibration", texts / "text.txt", "--eval", texts / "search.txt")
    return ("search", texts / "model", "--out", out, "--method", "dsa", *small, *text, *report, *more)


def test_search_finds_a_function_prunes_by_it_and_goes_on_when_asked_for_more(texts, tmp_path):
    out = tmp_path / "sparse"
    options = ("--sparsity", 0.5, "--correlate", 6, "--finalists", 2, "--plateau", "none")
    done = run(*arguments(texts, out, *options, "--trials", 12))
    assert done.returncode == 0, done.stderr
    for expected in ("uniform", "held out", "winner:", "drawn: 12", "rank correlation", "perplexity on"):
        assert expected in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["counts"]["drawn"] == len(report["trials"]) == 12
    assert report["proof"]["argmax_agreement"] == 1
    model, plan = AutoModelForCausalLM.from_pretrained(out), json.loads((out / "plan.json").read_text())
    for name, removed in plan["removed"].items():
        assert int((model.get_submodule(name).weight == 0).sum()) == removed
    assert sum(plan["removed"].values()) == report["zeros"] == pytest.approx(report["weights"] / 2, abs=1)
    page = read((out / "report.html").read_text()).text
    for expected in ("Search for an allocation function", "Sparsity of every layer", "Fast and full loss", "owl"):
        assert expected in page
    assert yaml.safe_load((out / "recipe.yaml").read_text())["search"]["plateau"] is None
    best = report["best"]
    if best["function"] is not None:
        assert str(Function.load(out / "function.json")) == best["function"]
        assert read_metadata(out / "function.json")["sparsity"] == 0.5

    again = run(*arguments(texts, out, *options, "--trials", 15, "--overwrite", "--no-proof"))
    assert again.returncode == 0, again.stderr
    later = json.loads((out / "report.json").read_text())
    assert [t["function"] for t in later["trials"][:12]] == [t["function"] for t in report["trials"]]
    assert len(later["trials"]) == 15


def test_ignored_linears_are_dense_in_the_files(texts, tmp_path):
    uneven = "q_proj,k_proj,v_proj,gate_proj,up_proj"
    out = tmp_path / "sparse"
    options = ("--pattern", "4:8", "--ignore", uneven, "--trials", 3, "--correlate", 0, "--finalists", 1, "--no-proof")
    done = run(*arguments(texts, out, *options))
    assert done.returncode == 0, done.stderr
    dense, sparse = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (texts / "model", out))
    changed = {name for name, tensor in sparse.items() if not torch.equal(tensor, dense[name])}
    removed = json.loads((out / "plan.json").read_text())["removed"]
    assert changed == {f"{name}.weight" for name in removed}
    assert {name.rpartition(".")[2] for name in removed} == {"o_proj", "down_proj"}
    assert json.loads((out / "report.json").read_text())["config"]["ignore"] == uneven.split(",")
    assert yaml.safe_load((out / "recipe.yaml").read_text())["search"]["ignore"] == uneven.split(",")
    assert "gate_proj, up_proj (left out by ignore) are dense" in (out / "README.md").read_text()


def test_zeros_are_counted_in_the_saved_files(texts, tmp_path, monkeypatch):
    from pruneengine.jobs.checkpoint_job import CheckpointJob

    save, out = CheckpointJob.store, tmp_path / "sparse"

    def with_another_zero(*arguments, **options):
        saved = save(*arguments, **options)
        weights = load_file(saved.path / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        weights[name].view(-1)[weights[name].view(-1).nonzero()[0]] = 0
        save_file(weights, saved.path / "model.safetensors", {"format": "pt"})
        return saved

    monkeypatch.setattr(CheckpointJob, "store", with_another_zero)
    options = ("--sparsity", 0.5, "--trials", 2, "--correlate", 0, "--finalists", 1, "--no-proof")
    done = run(*arguments(texts, out, *options))
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["zeros"] == report["zeros planned"] + 1
    assert report["matrices with other than the planned zeros"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "give --sparsity S, or --pattern N:M"),
        (("--sparsity", 1.5), "sparsity must lie in [0, 1), got 1.5"),
        (("--sparsity", 0.5, "--ratio", 0.2), "--ratio: options of --method adapruner"),
        (("--sparsity", 0.5, "--plateau", "soon"), "plateau must be a number of trials or none, got 'soon'"),
        (("--sparsity", 0.5, "--sampler", "tpe"), "unknown sampler 'tpe'; choose from evolution, random"),
        (("--sparsity", 0.5, "--held-out-share", 4), "held_out must lie in [0, 1], got 4"),
        (("--sparsity", 0.5, "--ignore", "middle_proj"), "ignore 'middle_proj' matches none of the linears"),
        (("--pattern", "8:16"), "groups of 16 need input dimensions that 16 divides"),
        (("--sparsity", 0.5, "--recover", "--recover-data", "x"), "would fill the zeros of a sparse model"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(texts, tmp_path, more, message):
    out = tmp_path / "sparse"
    done = run(*arguments(texts, out, *more))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert not out.exists()


def test_a_recipe_says_none_as_the_options_do(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("search: {sparsity: 0.5, plateau: none, stop: none, trials: 7}\n")
    of_recipe = dsa_config(recipe, {"plateau": None})
    assert (of_recipe.plateau, of_recipe.stop, of_recipe.trials) == (None, None, 7)
    given = dsa_config(recipe, {"plateau": "9", "trials": 8})
    assert (given.plateau, given.stop, given.trials) == (9, None, 8)


def test_options_of_dsa_are_refused_by_the_other_search(texts, tmp_path):
    done = run(
        "search", texts / "model", "--out", tmp_path / "out", "--ratio", 0.2, "--sparsity", 0.5, "--pruner", "wanda"
    )
    assert done.returncode == 2
    assert "--sparsity, --pruner: options of --method dsa" in " ".join(done.stderr.split())
