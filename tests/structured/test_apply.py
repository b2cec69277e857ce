"""Masking equals slicing, on every layout and structure."""

import pytest
import torch

from pruneengine import ops
from pruneengine.model import find_groups
from pruneengine.model.edit import zero_of_groups, zero_weights
from pruneengine.structured.allocate import allocate
from pruneengine.structured.apply import compact, mask
from pruneengine.structured.plan import make_plan
from pruneengine.structured.scores.score import score
from tests.helpers.tiny import VARIANTS, logits, tiny_model, tiny_tokens


def plan_for(model, kinds, shape="uniform", ratio=0.4, allocation="uniform"):
    structure = find_groups(model)
    scores = score(model, "magnitude_l1", structure=structure)
    ratios = allocate(structure, scores, ratio, kinds=kinds, allocation=allocation)
    return make_plan(structure, scores, ratios, ratio, kinds=kinds, shape=shape)


CASES = [
    (("heads",), "uniform"),
    (("mlp",), "uniform"),
    (("heads", "mlp"), "uniform"),
    (("heads", "mlp"), "per-layer"),
    (("layers",), "uniform"),
    (("heads", "mlp", "layers"), "per-layer"),
]


@pytest.mark.parametrize(("kinds", "shape"), CASES, ids=lambda v: v if isinstance(v, str) else "+".join(v))
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_and_compacted_logits_agree(variant, kinds, shape):
    model, tokens = tiny_model(variant), tiny_tokens(3, 24)
    dense = logits(model, tokens)
    plan = plan_for(model, kinds, shape, allocation="global" if shape == "per-layer" else "uniform")
    with mask(model, plan):
        masked = logits(model, tokens)
    assert torch.equal(logits(model, tokens), dense), "the mask must leave nothing behind"
    assert not torch.allclose(masked, dense, atol=1e-3), "the plan must change something"
    compact(model, plan)
    assert sum(p.numel() for p in model.parameters()) == plan.params_after
    torch.testing.assert_close(logits(model, tokens), masked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_with_a_cache_equals_generation_without(variant):
    model = tiny_model(variant)
    compact(model, plan_for(model, ("heads", "mlp", "layers"), "per-layer", allocation="global"))
    prompt = tiny_tokens(1, 6)
    # 8 new tokens: within mistral's sliding window, where both must agree exactly.
    cached, plain = (model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=u) for u in (True, False))
    assert torch.equal(cached, plain)


def test_config_is_in_step_after_a_uniform_prune():
    model = tiny_model("qwen3-norms")
    compact(model, plan_for(model, ("heads", "mlp", "layers"), "uniform", ratio=0.6))
    config, layer = model.config, model.model.layers[0]
    assert config.num_key_value_heads * config.head_dim == layer.self_attn.k_proj.out_features
    assert config.num_attention_heads * config.head_dim == layer.self_attn.q_proj.out_features
    assert config.intermediate_size == layer.mlp.gate_proj.out_features
    assert config.num_hidden_layers == len(model.model.layers) == len(config.layer_types) < 3
    assert not hasattr(config, "pruneengine_widths")


def test_a_pruned_model_can_be_pruned_again():
    model = tiny_model()
    compact(model, plan_for(model, ("heads", "mlp"), "per-layer", ratio=0.3))
    plan = plan_for(model, ("mlp",), "per-layer", ratio=0.3)
    with mask(model, plan):
        masked = logits(model, tiny_tokens())
    compact(model, plan)
    torch.testing.assert_close(logits(model, tiny_tokens()), masked, rtol=1e-4, atol=1e-4)


def test_mask_is_undone_after_an_error():
    model = tiny_model()
    dense = logits(model, tiny_tokens())
    plan = plan_for(model, ("heads", "mlp", "layers"), "per-layer")
    with pytest.raises(RuntimeError, match="stop"), mask(model, plan):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, tiny_tokens()), dense)


def test_a_foreign_plan_is_refused_before_anything_changes():
    plan = plan_for(tiny_model(intermediate_size=64), ("mlp",))
    model = tiny_model()
    before = logits(model, tiny_tokens())
    with pytest.raises(ValueError, match=r"layers\.0\.mlp has 64 in the plan and 72 in the model"):
        compact(model, plan)
    assert torch.equal(logits(model, tiny_tokens()), before)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_weights_become_positive_zeros_and_the_others_keep_every_bit(dtype, transposed):
    linear = torch.nn.Linear(9, 5).to(dtype)
    if transposed:
        linear.weight = torch.nn.Parameter(linear.weight.detach().t().contiguous().t())
    before, place = linear.weight.detach().clone(), linear.weight.data_ptr()
    mask = torch.rand(5, 9) < 0.5
    zero_weights(linear, mask)
    assert linear.weight.data_ptr() == place
    assert torch.equal(linear.weight[~mask], before[~mask])
    assert (linear.weight[mask] == 0).all()
    assert not linear.weight[mask].signbit().any()


@pytest.mark.parametrize("part", [False, True], ids=["whole", "part"])
def test_groups_of_weights_are_zeroed_in_place(part):
    linear, norm = torch.nn.Linear(8, 5), torch.rand(8)
    weight = linear.weight.detach().clone()
    if part:
        wide = torch.zeros(5, 11)
        wide[:, 2:10] = weight
        linear.weight = torch.nn.Parameter(wide[:, 2:10])
    place = linear.weight.data_ptr()
    zero_of_groups(linear, 1, 4, norm)
    assert linear.weight.data_ptr() == place
    assert torch.equal(linear.weight, ops.nm_apply(weight, 1, 4, norm))
