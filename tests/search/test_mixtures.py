"""Both searches on a mixture of experts, given as transformers holds it."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("optuna")
pytest.importorskip("scipy")

import pruneengine as pe
from pruneengine.search.dsa.config import DsaConfig
from tests.model.test_experts import fused_model
from tests.search.adapruner import test_search as adapruner
from tests.search.dsa.test_search import OPTIONS, texts


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_fused_experts_are_searched_as_those_with_linears_of_their_own(name):
    config = DsaConfig(**(OPTIONS | {"trials": 3}))
    fused, unfused = fused_model(name), pe.unfuse_experts(fused_model(name))
    before = {name: tensor.clone() for name, tensor in unfused.state_dict().items()}
    found, expected = (pe.search(model, texts(), config) for model in (fused, unfused))
    assert found.finalists == expected.finalists
    assert [trial.levels for trial in found.trials] == [trial.levels for trial in expected.trials]
    assert any(".expert." in path or ".experts." in path for path in found.plan.removed)
    for model in (fused, unfused):
        state = model.state_dict()
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def test_plans_of_fused_experts_are_searched_as_those_of_unfused_ones():
    config = replace(adapruner.CONFIG, trials=2, ratio=0.2)
    models = fused_model("mixtral"), pe.unfuse_experts(fused_model("mixtral"))
    found, expected = (pe.search(model, adapruner.TEXTS, config) for model in models)
    assert found.plan == expected.plan
    assert any("experts" in name for name in found.plan.keep)
