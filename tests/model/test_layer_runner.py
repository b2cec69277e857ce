"""Layer-by-layer runs against the model's own forward pass, for every family."""

import pytest
import torch

from pruneengine.model import find_groups
from pruneengine.model.decoder import frozen, hidden_states
from pruneengine.model.layer_runner import LayerRunner, by_sample
from tests.helpers.families import FAMILIES, family_model

TOKENS = torch.randint(3, 90, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_one_by_one_give_the_hidden_states_of_the_model(name):
    model = family_model(name)
    structure = find_groups(model)
    with torch.no_grad():
        batches = TOKENS.split(2)
        runner = LayerRunner(model, structure, batches)
        for tokens, hidden in zip(batches, runner.inputs, strict=True):
            for layer in range(structure.num_layers):
                hidden = runner.run(layer, hidden)
            actual = model.get_submodule(structure.family.final_norm)(hidden)
            assert torch.equal(actual, hidden_states(model, tokens))


def test_a_layer_gives_a_graph_only_when_asked():
    model = family_model("llama")
    with frozen(model):
        runner = LayerRunner(model, find_groups(model), [TOKENS])
        hidden = runner.inputs[0].requires_grad_(True)
        assert not runner.run(0, hidden).requires_grad
        runner.run(0, hidden, gradients=True).sum().backward()
    assert hidden.grad.shape == hidden.shape


def test_flat_activations_are_divided_by_sample():
    x = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(by_sample(x.view(6, 4), 2), x)
    assert by_sample(x, 2) is x
