"""Changes within a with block: afterwards the model has its own parameters again, also after an error."""

import pytest
import torch
from torch import nn

from pruneengine.model.masking import in_float32, lent


def test_lent_parameters_are_given_back_after_an_error():
    linear = nn.Linear(3, 2, bias=False)
    own = linear.weight
    with lent(linear, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}):
        assert torch.equal(linear(torch.ones(3)), torch.full((2,), 4.0))
    assert linear.weight is own
    with pytest.raises(RuntimeError), lent(linear, {"weight": torch.ones(2, 3)}):
        linear(torch.ones(4))
    assert linear.weight is own
    assert linear.bias is None
    assert list(dict(linear.named_parameters())) == ["weight"]


def test_lent_parameters_ask_for_gradients_as_the_own_do():
    linear = nn.Linear(3, 2, bias=False).requires_grad_(False)
    with lent(linear, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}):
        assert not any(parameter.requires_grad for parameter in linear.parameters())


def test_float32_copies_live_for_one_call():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    own = dict(model.named_parameters())
    x = torch.randn(4, 3)
    expected = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    expected.load_state_dict({name: parameter.float() for name, parameter in own.items()})
    with in_float32(model):
        assert torch.equal(model(x), expected(x))
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    with pytest.raises(RuntimeError):
        model(x)
