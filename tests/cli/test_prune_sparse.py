"""Sparse pruning on the command line, judged by its output, its files and its exit status."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from pruneengine.calibration.statistics import Statistics
from pruneengine.model import get_linear
from pruneengine.sparse.functions.function import PUBLISHED
from pruneengine.sparse.plan import SparsePlan
from tests.cli.test_prune import run
from tests.helpers.pages import read


def arguments(folder, *more):
    sizes = ("--nsamples", 6, "--seqlen", 24, "--eval-seqlen", 32, "--eval-windows", 4)
    return ("prune", folder / "model", *sizes, "--eval-text", folder / "text.txt", *more)


@pytest.fixture(scope="module")
def pruned(folder):
    out = folder / "pruned"
    done = run(*arguments(folder, "--sparsity", 0.6, "--allocation", "owl", "--out", out))
    assert done.returncode == 0, done.stderr
    return out, done


def test_the_files_hold_exactly_the_planned_zeros(folder, pruned):
    out, done = pruned
    plan = SparsePlan.load(out / "plan.json")
    model, dense = (AutoModelForCausalLM.from_pretrained(place) for place in (out, folder / "model"))
    total = sum(math.prod(shape) for shape in plan.shapes.values())
    assert sum(plan.removed.values()) == round(0.6 * total)
    assert len(set(map(plan.sparsity, plan.removed))) > 1
    for name, count in plan.removed.items():
        weight = get_linear(model, name).weight
        assert int((weight == 0).sum()) == count
        kept = weight != 0
        assert torch.equal(weight[kept], get_linear(dense, name).weight[kept])
    assert "exactly as planned in 21 of 21 matrices" in done.stdout
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)


def test_the_terminal_says_what_was_done_and_what_it_is_good_for(pruned):
    _, done = pruned
    for expected in (
        "asked for 60.00% zeros", "wanda on", "of them zero, in 21 linears", "perplexity", "run at the same speed",
        "We know of no maintained runtime", "reloaded in a fresh process", "where the time went",
    ):  # fmt: skip
        assert expected in " ".join(done.stdout.split())
    assert "builtin text is for smoke tests" in done.stdout


def test_the_report_and_the_card(pruned):
    out, _ = pruned
    report = json.loads((out / "report.json").read_text())
    assert report["verb"] == "sparse"
    assert report["zeros"] == report["zeros planned"]
    assert report["matrices with other than the planned zeros"] == 0
    assert report["perplexity"]["dense"] != report["perplexity"]["pruned"]
    assert [row["layer"] for row in report["layers"]] == [0, 1, 2]
    assert len(report["layers"][0]["linears"]) == 7
    assert report["proof"]["argmax_agreement"] == 1
    assert {"load", "text", "evaluate", "prune", "save"} <= report["seconds"].keys()
    words = " ".join(read((out / "report.html").read_text()).words)
    for expected in ("made sparse by wanda", "What gets faster, and what does not", "run at the same speed"):
        assert expected in words
    card = (out / "README.md").read_text()
    assert "## Sparsity" in card
    assert f"{report['zeros']:,} of the {report['weights']:,} weights of 21 linears are zero" in card
    assert "as large as the unpruned model's" in card


def test_its_recipe_does_it_again(folder, pruned, tmp_path):
    out, _ = pruned
    assert yaml.safe_load((out / "recipe.yaml").read_text())["sparse"]["allocation"] == "owl"
    again = run(
        "prune", folder / "model", "--recipe", out / "recipe.yaml", "--eval-text", "none", "--no-proof",
        "--out", tmp_path / "again",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    first, second = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (out, tmp_path / "again"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    flat = tmp_path / "flat.yaml"
    flat.write_text("sparsity: 0.25\nmethod: magnitude\n")
    done = run("prune", folder / "model", "--recipe", flat, "--dry-run")
    assert "asked for 25.00% zeros" in done.stdout, done.stderr


OWN = {
    "list": [0.5, 0.6, 0.7],
    "object": {"0": 0.5, "1": 0.6, "model.layers.1.mlp.up_proj": 0.6, "2": 0.7},
    "plan": None,
}


@pytest.mark.parametrize("kind", OWN)
def test_a_recipe_needs_no_file_of_an_allocation(folder, pruned, tmp_path, monkeypatch, kind):
    content = json.dumps(OWN[kind]) if OWN[kind] else (pruned[0] / "plan.json").read_text()
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    own = tmp_path / "here" / "own.json"
    own.write_text(content)
    options = ("--method", "magnitude", "--sparsity", 0.6, "--allocation", "own.json", "--no-proof", "--out", "out")
    done = run(*arguments(folder, *options))
    assert done.returncode == 0, done.stderr
    recipe = tmp_path / "here" / "out" / "recipe.yaml"
    assert yaml.safe_load(recipe.read_text())["sparse"]["allocation"] == json.loads(content)
    assert len(read((recipe.parent / "report.html").read_text()).words) < 2000
    own.write_text("[0.6, 0.6, 0.6]")
    monkeypatch.chdir(tmp_path / "there")
    again = run("prune", folder / "model", "--recipe", recipe, "--eval-text", "none", "--no-proof", "--out", "out")
    assert again.returncode == 0, again.stderr
    plans = [SparsePlan.load(tmp_path / place / "out" / "plan.json") for place in ("here", "there")]
    assert plans[0] == plans[1]
    assert len(set(map(plans[0].sparsity, plans[0].removed))) > 2


def test_sparsities_are_an_allocation_without_a_file(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sparsity: 0.6\nmethod: magnitude\nallocation: {0: 0.5, 1: 0.6, 2: 0.7}\n")
    for given in (("--recipe", recipe), ("--sparsity", 0.6, "--method", "magnitude", "--allocation", "[0.5,0.6,0.7]")):
        done = run("prune", folder / "model", *given, "--dry-run")
        assert done.returncode == 0, done.stderr
        rows = [line.replace("│", "").split() for line in done.stdout.splitlines()]
        assert [row for row in rows if row and row[0] in "012"] == [["0", "50.00"], ["1", "60.00"], ["2", "70.00"]]
    recipe.write_text("sparsity: 0.6\nallocation: {0: 0.5, 1: 0.6, 2: 0.6}\n")
    refused = run("prune", folder / "model", "--recipe", recipe, "--dry-run")
    assert "allocation: the sparsities' mean over weights is" in refused.stderr


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt"])
def test_two_of_four(folder, tmp_path, method):
    out = tmp_path / "pruned"
    options = ("--method", method, "--pattern", "2:4", "--ignore", "down_proj", "--no-proof")
    done = run(*arguments(folder, *options, "--out", out))
    assert done.returncode == 0, done.stderr
    assert "sparse tensor cores" in done.stdout
    assert "18 of 18 matrices" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(out)
    kept = get_linear(model, "model.layers.1.mlp.up_proj").weight.unflatten(-1, (-1, 4)) != 0
    assert bool((kept.sum(-1) == 2).all())
    assert bool((get_linear(model, "model.layers.1.mlp.down_proj").weight != 0).all())
    card = (out / "README.md").read_text()
    assert "All matrices are 2:4" in card
    assert "Embeddings, the head and down_proj (left out by ignore) are dense" in card
    assert "zeros in 18 linears; the plan has" in " ".join(done.stdout.split())
    assert "of the weights of 18 linears are zero" in (out / "report.html").read_text()


def test_a_dry_run_shows_every_layer_and_writes_nothing(folder, tmp_path):
    function = tmp_path / "function.json"
    PUBLISHED.save(function)
    statistics = tmp_path / "statistics.safetensors"
    asked = arguments(folder, "--sparsity", 0.5, "--dry-run", "--statistics", statistics)
    done = run(*asked, "--allocation", function)
    assert done.returncode == 0, done.stderr
    assert "all its linears" in done.stdout
    assert "50.0000%" in done.stdout
    lock = ".statistics.safetensors.lock"
    assert sorted(path.name for path in tmp_path.iterdir()) == [lock, "function.json", "statistics.safetensors"]
    assert "squares" in Statistics.load(statistics).tensors
    again = run(*asked, "--allocation", str(PUBLISHED))
    assert again.returncode == 0, again.stderr
    tables = [one.stdout.split("zeros, %")[1].split("where the time went")[0] for one in (done, again)]
    assert tables[0] == tables[1]


def test_linears_that_differ_have_columns_of_their_own(folder):
    options = ("--method", "magnitude", "--sparsity", 0.5, "--allocation", "er", "--ignore", "k_proj", "--dry-run")
    done = run(*arguments(folder, *options))
    assert done.returncode == 0, done.stderr
    header = next(line for line in done.stdout.splitlines() if "layer" in line)
    assert [word for word in header.split() if word.isalpha()] == ["layer", "all", "q", "v", "o", "gate", "up", "down"]


def test_the_plan_of_an_earlier_prune_is_an_allocation(folder, pruned, tmp_path):
    out, _ = pruned
    asked = ("--method", "magnitude", "--sparsity", 0.6, "--allocation", out / "plan.json", "--dry-run")
    done = run(*arguments(folder, *asked))
    assert done.returncode == 0, done.stderr
    assert "60.0000%" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", 0.5, "--ratio", 0.2), "--ratio with --sparsity: structured pruning removes"),
        (
            ("--pattern", "2:4", "--hywia-steps", 3, "--shape", "uniform"),
            "--shape, --hywia-steps with --pattern",
        ),
        (("--ratio", 0.2, "--damp", 0.1, "--ignore", "q_proj"), "--damp, --ignore: options of sparse pruning"),
        (("--method", "sparsegpt"), "zeros single weights: give --sparsity"),
        (("--sparsity", 1.0), "sparsity must lie in [0, 1), got 1.0"),
        (("--pattern", "4:2"), "keeps 4 of 2"),
        (("--pattern", "3:7"), "groups of 7 need input dimensions that 7 divides"),
        (("--sparsity", 0.5, "--method", "vectorize"), "vectorize"),
        (("--sparsity", 0.5, "--allocation", "nowhere.json"), "unknown allocation 'nowhere.json'"),
        (("--sparsity", 0.5, "--allocation", "abs | variance_of | no"), "variance_of"),
        (("--sparsity", 0.5, "--ignore", "middle_proj"), "matches none of the linears"),
        (("--sparsity", 0.5, "--speed"), "no speed to measure"),
        (("--sparsity", 0.5, "--recover", "--recover-data", "builtin"), "would fill the zeros"),
        (("--sparsity", 0.5, "--calibration", "absent.txt"), "absent.txt"),
        (("--sparsity", 0.5, "--eval-seqlen", 1), "evaluation windows of 1 token"),
    ],
    ids=lambda v: v if isinstance(v, str) else " ".join(map(str, v)),
)
def test_bad_input_is_refused_before_the_model_is_loaded(folder, tmp_path, options, message):
    done = run(*arguments(folder, "--out", tmp_path / "out", *options))
    assert done.returncode == 2
    assert message in done.stderr
    assert "loading" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_statistics_that_are_none_are_refused_before_the_model_is_loaded(folder, tmp_path):
    path = tmp_path / "statistics.safetensors"
    asked = arguments(folder, "--sparsity", 0.5, "--allocation", "owl", "--dry-run", "--statistics", path)
    assert run(*asked).returncode == 0
    whole = path.read_bytes()
    Statistics.load(path).subset([0, 1]).save(tmp_path / "other.safetensors")
    held = Statistics.load(path)
    replace(held, tensors={"sum": held.tensors["squares"]}).save(tmp_path / "sums.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn.safetensors").write_bytes(whole[:-100])
    (tmp_path / "no.safetensors").write_bytes(b"no such thing")
    for name, message in (
        ("torn.safetensors", "corrupt statistics file"),
        ("no.safetensors", "corrupt statistics file"),
        ("folder", "not a statistics file, but a folder"),
        ("sums.safetensors", "the statistics must hold 'squares'; collected: sum"),
    ):
        done = run(*asked[:-1], tmp_path / name)
        assert done.returncode == 2
        assert f"{tmp_path / name}: {message}" in " ".join(done.stderr.split())
        assert "loading" not in done.stderr
    again, other = run(*asked), run(*asked[:-1], tmp_path / "other.safetensors")
    assert (again.returncode, other.returncode) == (0, 2)
    assert "belong to other calibration data" in other.stderr


def test_recipes_of_the_other_kind_are_refused(folder, pruned, tmp_path):
    out, _ = pruned
    done = run(*arguments(folder, "--recipe", out / "recipe.yaml", "--ratio", 0.2, "--out", tmp_path / "out"))
    assert (done.returncode, "--ratio with --recipe" in done.stderr) == (2, True)
    searched = run("search", folder / "model", "--recipe", out / "recipe.yaml", "--out", tmp_path / "out")
    assert (searched.returncode, "holds the recipe of a sparse prune" in searched.stderr) == (2, True)
    recipe = tmp_path / "structured.yaml"
    recipe.write_text("config:\n  ratio: 0.2\n  method: wanda\n")
    structured = run(*arguments(folder, "--recipe", recipe, "--sparsity", 0.5, "--dry-run"))
    assert (structured.returncode, "expected that of a sparse prune" in structured.stderr) == (2, True)


def test_recovery_does_not_fill_the_zeros(pruned, tmp_path):
    out, _ = pruned
    done = run("recover", out, "--data", "builtin", "--max-steps", 1, "--out", tmp_path / "better")
    assert done.returncode == 2
    assert "would fill its zeros" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_sparse_checkpoint_is_a_model_like_any_other(folder, pruned, tmp_path):
    out, _ = pruned
    report = json.loads((out / "report.json").read_text())
    evaluated = run("eval", out, "--text", folder / "text.txt", "--seqlen", 32, "--windows", 4)
    assert f"perplexity {report['perplexity']['pruned']:.4f}" in evaluated.stdout, evaluated.stderr
    compared = run("compare", out, out)
    assert compared.returncode == 0, compared.stderr
    inspected = run("inspect", out)
    assert inspected.returncode == 0, inspected.stderr
    smaller = run(
        "prune", out, "--method", "magnitude_l1", "--ratio", 0.4, "--eval-text", "none", "--no-proof",
        "--out", tmp_path / "smaller",
    )  # fmt: skip
    assert smaller.returncode == 0, smaller.stderr
