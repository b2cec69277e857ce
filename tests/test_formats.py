"""Files of an earlier version: today's code reads each, and writes it again byte for byte."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import pruneengine as pe
from pruneengine.common.recipes import read_keys, read_recipe, write_yaml
from pruneengine.model import MODELING_FILE, find_groups
from pruneengine.model.config_sync import layer_widths
from pruneengine.recovery.config import read_recovery_recipe
from pruneengine.report.write import report_files
from pruneengine.sparse.functions.function import Function, read_metadata

FORMATS = Path(__file__).with_name("formats")
CHECKPOINTS = ["uniform", "per-layer"]
REPORTS = ["uniform/report.json", "per-layer/report.json", *(p.name for p in sorted(FORMATS.glob("*-report.json")))]
# Recipe, section and the config that the section holds.
RECIPES = [
    ("uniform/recipe.yaml", "config", pe.PruneConfig),
    ("per-layer/recipe.yaml", "config", pe.PruneConfig),
    ("recovered-recipe.yaml", "config", pe.PruneConfig),
    ("sparse-recipe.yaml", "sparse", pe.SparseConfig),
    ("searched-recipe.yaml", "search", pe.AdaPrunerConfig),
    ("dsa-recipe.yaml", "search", pe.DsaConfig),
]


def same_bytes(written: Path, name: str) -> bool:
    return written.read_bytes() == (FORMATS / name).read_bytes()


def tensor_file(path: Path) -> tuple[dict, bytes]:
    """Return header and tensors of a file. With two entries of metadata safetensors writes them in a random order."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


@pytest.mark.parametrize("name", [f"{folder}/plan.json" for folder in CHECKPOINTS])
def test_plan(name, tmp_path):
    plan = pe.Plan.load(FORMATS / name)
    assert plan.params_after < plan.params_before
    plan.save(tmp_path / "plan.json")
    assert same_bytes(tmp_path / "plan.json", name)


def test_sparse_plan(tmp_path):
    plan = pe.SparsePlan.load(FORMATS / "sparse-plan.json")
    assert plan.asked == 0.5
    plan.save(tmp_path / "plan.json")
    assert same_bytes(tmp_path / "plan.json", "sparse-plan.json")


def test_statistics(tmp_path):
    statistics = pe.Statistics.load(FORMATS / "statistics.safetensors")
    assert statistics.num_samples == 3
    assert len(statistics.tensors) >= 2
    statistics.save(tmp_path / "statistics.safetensors")
    assert same_bytes(tmp_path / "statistics.safetensors", "statistics.safetensors")


def test_function(tmp_path):
    file = FORMATS / "function.json"
    assert str(Function.load(file)) == "abs, log | l1 | sigmoid, tanh | λ=0.2 | -"
    Function.load(file).save(tmp_path / "function.json", read_metadata(file))
    assert same_bytes(tmp_path / "function.json", "function.json")


@pytest.mark.parametrize(("name", "section", "kind"), RECIPES, ids=lambda value: value if "/" in str(value) else None)
def test_recipe(name, section, kind, tmp_path):
    config = kind.from_dict(read_recipe(FORMATS / name, section))
    again = read_keys(FORMATS / name) | {section: config.to_dict()}
    (tmp_path / "recipe.yaml").write_text(write_yaml(again))
    assert same_bytes(tmp_path / "recipe.yaml", name)


def test_recipe_of_a_recovery(tmp_path):
    name = "recovered-recipe.yaml"
    config = pe.RecoverConfig.from_dict(read_recovery_recipe(FORMATS / name))
    assert config.max_steps == 2
    again = read_keys(FORMATS / name)
    again["recovery"]["config"] = config.to_dict()
    (tmp_path / "recipe.yaml").write_text(write_yaml(again))
    assert same_bytes(tmp_path / "recipe.yaml", name)


@pytest.mark.parametrize("name", REPORTS)
def test_report(name):
    text = (FORMATS / name).read_text()
    values = json.loads(text)
    files = report_files(values["verb"], values)
    assert files["report.json"] == text
    assert files["report.html"].startswith("<!doctype html>")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_opens_and_gives_its_logits(name):
    folder = FORMATS / name
    stored = load_file(folder / "logits.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=name == "per-layer").eval()
    with torch.inference_mode():
        logits = model(stored["tokens"]).logits
    # Another processor may add in another order.
    torch.testing.assert_close(logits, stored["logits"], rtol=1e-5, atol=1e-5)
    widths = layer_widths(find_groups(model))
    assert (len(set(map(str, widths))) == 1) == (name == "uniform")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_is_written_again(name, tmp_path):
    folder = FORMATS / name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=name == "per-layer").eval()
    pe.save(
        model, None, tmp_path / "out", proof=False,
        plan=pe.Plan.load(folder / "plan.json"), recipe=(folder / "recipe.yaml").read_text(),
    )  # fmt: skip
    for file in ("plan.json", "recipe.yaml"):
        assert same_bytes(tmp_path / "out" / file, f"{name}/{file}"), file
    assert tensor_file(tmp_path / "out" / "model.safetensors") == tensor_file(folder / "model.safetensors")
    assert (tmp_path / "out" / "modeling_pruned.py").exists() == (name == "per-layer")
    now, then = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "out", folder))
    version = {"transformers_version": transformers.__version__}
    assert now == then | version


def test_modelling_file_is_the_one_that_checkpoints_carry():
    assert same_bytes(MODELING_FILE, "per-layer/modeling_pruned.py")
