"""Models that cannot be pruned are refused before a weight of them is touched."""

import pytest
import torch
from torch import nn

import pruneengine as pe
from pruneengine.model import model_fingerprint
from pruneengine.model.checks import check_prunable, quantisation_of
from tests.helpers.tiny import tiny_model, tiny_tokens


class CodedParameter(nn.Parameter):
    """A parameter of another class than torch's, as bitsandbytes has them."""


def coded(model):
    model.model.layers[1].mlp.up_proj.weight = CodedParameter(model.model.layers[1].mlp.up_proj.weight.detach())
    return model


def in_eight_bits(model):
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    return model


def in_eight_bit_floats(model):
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


def with_a_quantised_config(model):
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    return model


def wrapped(model):
    return nn.DataParallel(model)


def compiled(model):
    return torch.compile(model)


def with_a_compiled_layer(model):
    model.model.layers[1] = torch.compile(model.model.layers[1])
    return model


def with_adapters(model):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def with_adapters_inside(model):
    with_adapters(model)
    return model


UNPRUNABLE = [
    (coded, r"layers\.1\.mlp\.up_proj\.weight is a CodedParameter, expected a plain tensor"),
    (in_eight_bits, r"layers\.0\.self_attn\.q_proj\.weight has dtype torch\.int8"),
    (in_eight_bit_floats, r"q_proj\.weight has dtype torch\.float8_e4m3fn"),
    (with_a_quantised_config, r"quantised \(gptq\): load it in full precision"),
    (wrapped, r"wrapped by DataParallel: pass model\.module"),
    (compiled, r"wrapped by OptimizedModule: pass model\._orig_mod"),
    (with_a_compiled_layer, r"layers\.1 is wrapped by OptimizedModule: pass the model before it was wrapped"),
    (with_adapters, r"carries adapters \(PeftModel\w*\): merge them first"),
    (with_adapters_inside, r"carries adapters \(\w+ at model\.layers\.0\.self_attn\.q_proj\): merge them first"),
]


@pytest.mark.parametrize(("change", "message"), UNPRUNABLE, ids=[change.__name__ for change, _ in UNPRUNABLE])
def test_every_verb_refuses_before_the_model_is_touched(change, message):
    model = change(tiny_model())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokens = tiny_tokens()
    for verb in (
        lambda: pe.find_groups(model),
        lambda: pe.prune(model, tokens, pe.PruneConfig("magnitude_l1", 0.3)),
        lambda: pe.prune(model, tokens, pe.PruneConfig("wanda", 0.3)),
        lambda: pe.sparsify(model, None, pe.SparseConfig("magnitude", 0.5)),
        lambda: pe.calibrate(model, tokens, ("squares",)),
        lambda: model_fingerprint(model),
    ):
        with pytest.raises(ValueError, match=message):
            verb()
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(value.float(), after[name].detach().float()) for name, value in before.items())


def test_offloaded_weights_are_refused_and_shapes_alone_are_read():
    with torch.device("meta"):
        model = tiny_model()
    assert pe.find_groups(model).num_layers == 3
    check_prunable(model, weights=False)
    for verb in (
        lambda: model_fingerprint(model),
        lambda: pe.calibrate(model, tiny_tokens(), ("squares",)),
        lambda: pe.sparsify(model, None, pe.SparseConfig("magnitude", 0.5)),
        lambda: pe.prune(model, tiny_tokens(), pe.PruneConfig("wanda", 0.3)),
        lambda: pe.prune(model, None, pe.PruneConfig("magnitude_l1", 0.3)),
    ):
        with pytest.raises(ValueError, match="is on the meta device, offloaded or never loaded"):
            verb()


def test_the_quantisation_is_read_from_a_config_of_either_kind():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = tiny_model().config
    assert quantisation_of(config) is quantisation_of({}) is None
    config.quantization_config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    assert quantisation_of(config) == "bitsandbytes"
    assert quantisation_of({"quantization_config": {"quant_method": "fp8"}}) == "fp8"
