"""The command line on a mixture of experts, from inspect to a checkpoint that opens again."""

import json

import pytest
import torch

from pruneengine.checkpoint.load import load_model
from pruneengine.checkpoint.write import save
from pruneengine.model import find_groups
from tests.cli.test_prune import run
from tests.helpers.families import family_model
from tests.helpers.tiny_folder import TEXT
from tests.helpers.tiny_tasks import byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen2-MoE with a byte-level tokenizer, and a text file beside it."""
    root = tmp_path_factory.mktemp("experts")
    tokenizer = byte_tokenizer()
    save(family_model("qwen2_moe", vocab_size=len(tokenizer)), tokenizer, root / "model", proof=False)
    (root / "text.txt").write_text(TEXT)
    return root


def arguments(folder, *more):
    text = folder / "text.txt"
    sizes = ("--nsamples", 4, "--seqlen", 24, "--eval-text", text, "--eval-seqlen", 32, "--eval-windows", 2)
    return ("prune", folder / "model", "--calibration", text, *sizes, *more)


def test_inspect_lists_experts(folder):
    done = run("inspect", folder / "model")
    assert done.returncode == 0, done.stderr
    assert "experts.mlp" in done.stdout
    assert "2 of a layer stay" in done.stdout


def test_prune_takes_whole_experts_and_channels(folder, tmp_path):
    out = tmp_path / "pruned"
    kinds = ("--kinds", "experts,mlp", "--shape", "per-layer", "--allocation", "global")
    wanted = arguments(folder, "--method", "wanda", "--ratio", 0.4, *kinds)
    assert "channels of experts" in run(*wanted, "--dry-run").stdout
    done = run(*wanted, "--out", out)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert sum(report["plan"]["experts"]["kept"]) < 12
    model, _tokenizer = load_model(out)
    experts = [len(find_groups(model).experts(layer)) for layer in range(3)]
    assert experts == report["plan"]["experts"]["kept"]
    assert (out / "report.html").is_file()


def test_sparse_pruning_counts_the_zeros_of_experts(folder, tmp_path):
    out = tmp_path / "sparse"
    done = run(*arguments(folder, "--method", "wanda", "--sparsity", 0.5, "--out", out))
    assert done.returncode == 0, done.stderr
    model, _tokenizer = load_model(out)
    weight = model.get_submodule("model.layers.2.mlp.expert.3.up_proj").weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.isfinite(weight).all()
