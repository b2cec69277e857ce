"""Allocation functions found on one model, at work on others; counts and lists of one model stay with it."""

import json
import math

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import pruneengine as pe
from pruneengine.model import get_linear
from pruneengine.sparse.functions.function import Function
from pruneengine.sparse.functions.grammar import parse
from pruneengine.sparse.plan import SparsePlan
from tests.cli.test_prune import run
from tests.helpers.tiny import tiny_model, tiny_tokens

# The searched model has 3 layers of 60 by 72, 6 heads and 3 key-value heads.
OTHERS = {
    "deeper and wider, MHA": (
        "llama-mha-untied", {"num_hidden_layers": 5, "hidden_size": 48, "intermediate_size": 104},
    ),
    "shallower, qwen2 with biases": (
        "qwen2-biases", {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "head_dim": 8},
    ),
}  # fmt: skip
IN_PROCESS = OTHERS | {"GQA of one key-value head": ("llama-biases", {"num_key_value_heads": 1}), "qwen3": (
    "qwen3-norms", {"num_hidden_layers": 4})}  # fmt: skip


def uneven(variant, **changes):
    """Layers that differ, so that a function tells them apart."""
    model = tiny_model(variant, **changes)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            weight = layer.mlp.up_proj.weight
            weight.mul_(torch.where(torch.rand_like(weight) < 0.01 * (1 + 2 * index), 30.0, 1.0 + index))
    return model


@pytest.fixture(scope="module")
def function(texts, tmp_path_factory):
    """The file of a function that a search found: the winner's, or the best one where a fixed allocation won."""
    pytest.importorskip("optuna")
    out = tmp_path_factory.mktemp("searched") / "out"
    done = run(
        "search", texts / "model", "--out", out, "--method", "dsa", "--sparsity", 0.5, "--trials", 6, "--correlate", 0,
        "--calibration", texts / "text.txt", "--nsamples", 4, "--calibration-seqlen", 16, "--seqlen", 24,
        "--eval", texts / "search.txt", "--windows", 5, "--no-proof", "--finalists", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = out / "function.json"
    if not path.exists():
        rows = json.loads((out / "report.json").read_text())["finalists"]
        best = next(row for row in rows if row["name"].startswith("trial"))
        parse(best["function"]).save(path)
    return path


@pytest.fixture(scope="module", params=OTHERS)
def other(request, texts, tmp_path_factory):
    """The folder of a model of another shape."""
    variant, changes = OTHERS[request.param]
    place = tmp_path_factory.mktemp("other")
    PreTrainedTokenizerFast.from_pretrained(texts / "model").save_pretrained(place)
    uneven(variant, vocab_size=256, **changes).save_pretrained(place)
    return place


def arguments(texts, model, *more):
    small = ("--calibration", texts / "text.txt", "--nsamples", 4, "--seqlen", 16, "--eval-text", "none", "--no-proof")
    return ("prune", model, *small, *more)


def test_a_function_that_was_found_prunes_another_model_and_the_recipe_does_it_again(texts, function, other, tmp_path):
    own = tmp_path / "mine.json"
    own.write_text(function.read_text())
    out = tmp_path / "out"
    done = run(*arguments(texts, other, "--sparsity", 0.6, "--allocation", own, "--out", out))
    assert done.returncode == 0, done.stderr
    plan = SparsePlan.load(out / "plan.json")
    assert sum(plan.removed.values()) == round(0.6 * sum(map(math.prod, plan.shapes.values())))
    assert plan.allocation.startswith(f"function, {Function.load(own)}")
    by_layer = [[plan.sparsity(name) for name in plan.removed if f"layers.{i}." in name] for i in tiny_layers(other)]
    assert all(max(layer) - min(layer) < 0.01 for layer in by_layer)
    span = max(map(min, by_layer)) - min(map(max, by_layer))
    assert span == pytest.approx(2 * Function.load(own).spread, abs=0.01)
    pruned, dense = (AutoModelForCausalLM.from_pretrained(place) for place in (out, other))
    for name, count in plan.removed.items():
        weight = get_linear(pruned, name).weight
        assert int((weight == 0).sum()) == count
        kept = weight != 0
        assert torch.equal(weight[kept], get_linear(dense, name).weight[kept])

    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert parse(recipe["sparse"]["allocation"]) == Function.load(own)
    own.unlink()
    again = run("prune", other, "--recipe", out / "recipe.yaml", "--eval-text", "none", "--no-proof",
                "--out", tmp_path / "again")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert SparsePlan.load(tmp_path / "again" / "plan.json") == plan
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in pruned.state_dict().items())


def tiny_layers(place):
    return range(json.loads((place / "config.json").read_text())["num_hidden_layers"])


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("name", IN_PROCESS)
def test_every_method_takes_the_file_on_every_shape(name, method, tmp_path):
    path = tmp_path / "function.json"
    # Found elsewhere: the metadata names another model, sparsity and pruner.
    Function(("abslog",), "std", "atan", spread=0.06).save(path, {"source": "another", "sparsity": 0.5, "pruner": "x"})
    variant, changes = IN_PROCESS[name]
    config = pe.SparseConfig(method, 0.55, allocation=str(path), mode="two-pass", ignore=("layers.1.mlp.down_proj",))
    report = pe.sparsify(uneven(variant, **changes), tiny_tokens(4), config)
    plan, sparsities = report.plan, report.allocation.sparsities
    sizes = {name: math.prod(shape) for name, shape in plan.shapes.items()}
    assert sum(plan.removed.values()) == round(0.55 * sum(sizes.values()))
    mean = math.fsum(sparsities[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert mean == pytest.approx(0.55, abs=1e-12)
    assert max(sparsities.values()) - min(sparsities.values()) == pytest.approx(0.12)
    assert not any("1.mlp.down_proj" in name for name in plan.removed)
    assert not report.warnings


@pytest.mark.parametrize("name", OTHERS)
def test_groups_take_the_file_too(name, tmp_path):
    path = tmp_path / "function.json"
    Function(("abs",), "std", spread=0.3).save(path)
    variant, changes = OTHERS[name]
    config = pe.SparseConfig("wanda", pattern="2:4", allocation=str(path))
    plan = pe.sparsify(uneven(variant, **changes), tiny_tokens(4), config).plan
    assert plan.reached == 0.5
    kept = {plan.kept_of_group(name) for name in plan.removed}
    assert len(kept) > 1
    assert kept <= {1, 2, 3, 4}


@pytest.fixture(scope="module")
def plan(texts, tmp_path_factory):
    """The plan of a prune of the searched model."""
    out = tmp_path_factory.mktemp("planned") / "out"
    options = ("--method", "magnitude", "--sparsity", 0.6, "--allocation", "er", "--out", out)
    done = run(*arguments(texts, texts / "model", *options))
    assert done.returncode == 0, done.stderr
    return out / "plan.json"


def refused(texts, model, path, tmp_path):
    """What is said; nothing may be loaded or written before it."""
    out = tmp_path / "out"
    done = run(*arguments(texts, model, "--sparsity", 0.6, "--allocation", path, "--out", out))
    assert done.returncode == 2
    assert "loading" not in done.stderr
    assert not out.exists()
    return " ".join(done.stderr.split())


def test_the_plan_of_another_model_is_refused(texts, plan, other, tmp_path):
    said = refused(texts, other, plan, tmp_path)
    shape = tuple(AutoModelForCausalLM.from_pretrained(other).model.layers[0].self_attn.q_proj.weight.shape)
    name = "model.layers.0.self_attn.q_proj"
    assert f"plan.json: the plan is of another model: {name} is (72, 60) there and {shape} here" in said


def test_the_plan_of_a_deeper_or_shallower_model_says_what_is_missing(texts, plan, tmp_path):
    found = SparsePlan.load(plan)
    for layers in (2, 4):
        model = tiny_model(vocab_size=256, num_hidden_layers=layers)
        config = pe.SparseConfig("magnitude", 0.6, allocation=str(plan))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        missing = f"model.layers.{min(layers, 3)}.self_attn.q_proj"
        sides = "missing there and (72, 60) here" if layers == 4 else "(72, 60) there and missing here"
        with pytest.raises(ValueError, match="of another model") as error:
            pe.sparsify(model, None, config)
        assert f"{missing} is {sides}" in str(error.value)
        with pytest.raises(ValueError, match="of another model"):
            pe.sparsify(model, None, plan=found)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_list_by_layer_of_another_model_is_refused(texts, other, tmp_path):
    path = tmp_path / "layers.json"
    path.write_text("[0.5, 0.6, 0.7]")
    layers = len(tiny_layers(other))
    said = refused(texts, other, path, tmp_path)
    assert f"layers.json: 3 sparsities, expected {layers}, one for each decoder layer" in said


def test_a_list_by_linear_of_another_model_is_refused(texts, plan, other, tmp_path):
    found, path = SparsePlan.load(plan), tmp_path / "linears.json"
    path.write_text(json.dumps({name: found.sparsity(name) for name in found.removed}))
    layers = len(tiny_layers(other))
    said = refused(texts, other, path, tmp_path)
    deeper = "no sparsity for 14 linears, such as model.layers.3.self_attn.q_proj"
    shallower = f"is neither a linear, such as model.layers.0.mlp.down_proj, nor one of layers 0 to {layers - 1}"
    assert (deeper if layers > 3 else shallower) in said


def test_a_function_goes_back_to_the_model_that_it_was_found_on(texts, function, tmp_path):
    out = tmp_path / "out"
    done = run(*arguments(texts, texts / "model", "--sparsity", 0.5, "--allocation", function, "--out", out))
    assert done.returncode == 0, done.stderr
    assert SparsePlan.load(out / "plan.json").reached == pytest.approx(0.5, abs=1e-4)
