"""The examples of docs/embedding.md do what the page says of them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

DOCS = Path(__file__).parents[2] / "docs"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 16))


def wanda_in_plain_torch(model: nn.Sequential, batches: list[torch.Tensor], sparsity: float) -> list[torch.Tensor]:
    """What is left of each weight, by the formula of the paper."""
    kept, x = [], torch.cat([batch.flatten(0, 1) for batch in batches])
    for layer in model:
        if isinstance(layer, nn.Linear):
            scores = layer.weight.abs() * x.norm(dim=0)
            smallest = scores.sort(dim=1, stable=True).indices[:, : int(scores.shape[1] * sparsity)]
            kept.append(layer.weight.scatter(1, smallest, 0.0))
        x = layer(x)
    return kept


@torch.no_grad()
def test_the_plain_loop_is_wanda() -> None:
    model, batches = network(), list(torch.randn(3, 2, 5, 24, generator=torch.Generator().manual_seed(1)))
    expected = wanda_in_plain_torch(model, batches, 0.5)
    example("plain_loop").wanda(model, batches, 0.5)
    for layer, weight in zip((model[0], model[2]), expected, strict=True):
        assert torch.equal(layer.weight, weight)
        assert not layer._forward_pre_hooks


@torch.no_grad()
def test_the_plain_loop_keeps_two_of_four() -> None:
    model, batches = network(), [torch.randn(2, 5, 24)]
    before = model[0].weight.clone()
    example("plain_loop").wanda(model, batches, pattern="2:4")
    left = model[0].weight != 0
    assert (left.view(40, -1, 4).sum(2) == 2).all()
    assert torch.equal(model[0].weight[left], before[left])


@pytest.fixture
def torch_pruning() -> ModuleType:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    return example("torch_pruning_importance")


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_the_importance_is_torch_pruning_s_own(torch_pruning: ModuleType, p: float) -> None:
    torch.manual_seed(0)
    model = torch_pruning.GatedMLP(24, 48)
    with torch.no_grad():  # scores far enough apart to have one order
        model.gate.weight.mul_(torch.linspace(1, 3, 48)[torch.randperm(48), None])
    group = torch_pruning.group_of(model)
    theirs = torch_pruning.tp.importance.GroupMagnitudeImportance(p=int(p), bias=False, target_types=[nn.Linear])(group)
    ours = torch_pruning.FusedMagnitude(p)(group)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert torch.equal(ours.argsort(), theirs.argsort())


def test_torch_pruning_prunes_with_it(torch_pruning: ModuleType) -> None:
    torch.manual_seed(0)
    model, x = torch_pruning.GatedMLP(24, 48), torch.randn(1, 4, 24)
    worst = torch_pruning.FusedMagnitude()(torch_pruning.group_of(model)).argsort()[:12]
    kept = torch.ones(48, dtype=torch.bool).index_fill(0, worst, False)
    expected = model.gate.weight[kept].clone()
    pruner = torch_pruning.tp.pruner.BasePruner(
        model, x, torch_pruning.FusedMagnitude(), pruning_ratio=0.25, ignored_layers=[model.down],
        root_module_types=[nn.Linear],
    )  # fmt: skip
    pruner.step()
    assert torch.equal(model.gate.weight, expected)
    assert model(x).shape == x.shape


def test_the_page_names_every_op_and_both_examples() -> None:
    from pruneengine import ops

    page = (DOCS / "embedding.md").read_text()
    named = set(re.findall(r"\w+", page))
    assert set(ops.__all__) - named == set()
    for path in (DOCS / "examples").glob("*.py"):
        assert f"examples/{path.name}" in page
