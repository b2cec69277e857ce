"""Mixtures of experts: the same function unfused, and removal of whole experts."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import pruneengine
from pruneengine.checkpoint.write import count_saved_zeros, save
from pruneengine.data.samples import Samples
from pruneengine.model import Group, find_groups
from pruneengine.model.experts import unfuse_experts
from pruneengine.recovery import RecoverConfig
from pruneengine.report.values.structured import plan_columns
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.sparse.config import SparseConfig
from pruneengine.structured.allocate import allocate
from pruneengine.structured.apply import compact, mask
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.plan import Plan, make_plan
from pruneengine.structured.scores.score import score
from tests.helpers.families import FAMILIES, family_model
from tests.helpers.tiny import logits, tiny_tokens

TOKENS = tiny_tokens(4, 12)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
each_mixture = pytest.mark.parametrize("name", MIXTURES)


def fused_model(name):
    model_type, options = FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **options, experts_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def plan_of(model, ratio=0.25, kinds=("experts",), shape="uniform", allocation="uniform", scores=None):
    structure = find_groups(model)
    scores = scores or score(model, "magnitude_l1", structure=structure)
    ratios = allocate(structure, scores, ratio, kinds=kinds, allocation=allocation)
    return make_plan(structure, scores, ratios, ratio, kinds=kinds, shape=shape)


def unequal(model):
    """Return scores under which a ranking over all layers takes two experts of layer 0 and one of layer 2."""
    structure = find_groups(model)
    scores = score(model, "magnitude_l1", structure=structure)
    worth = {"layers.0.experts.1.mlp": 1, "layers.0.experts.2.mlp": 2, "layers.2.experts.3.mlp": 3}
    groups = {n: torch.full_like(of, worth.get(n, 50.0)) for n, of in scores.groups.items()}
    return replace(scores, groups=groups)


@each_mixture
def test_unfused_experts_compute_the_same_forward_and_backward(name):
    model = fused_model(name)
    with pytest.raises(ValueError, match=r"experts are fused; call pruneengine.unfuse_experts"):
        find_groups(model)
    expected = model(input_ids=TOKENS, labels=TOKENS)
    expected.loss.backward()
    gradients = model.model.layers[1].mlp.experts.down_proj.grad
    router = model.model.layers[0].mlp.gate.weight.grad.clone()
    model.zero_grad()
    parameters = sum(p.numel() for p in model.parameters())
    assert unfuse_experts(unfuse_experts(model)) is model
    assert sum(p.numel() for p in model.parameters()) == parameters
    found = model(input_ids=TOKENS, labels=TOKENS)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-6, atol=1e-6)
    found.loss.backward()
    for expert, gradient in zip(model.model.layers[1].mlp.expert, gradients, strict=True):
        torch.testing.assert_close(expert.down_proj.weight.grad, gradient, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(model.model.layers[0].mlp.gate.weight.grad, router, rtol=1e-4, atol=1e-6)


def test_unfused_experts_are_trained_or_not_as_the_fused_ones_were():
    model = fused_model("mixtral").requires_grad_(False)
    for layer in model.model.layers:
        layer.mlp.jitter_noise = 0.5
    expected = logits(model, TOKENS)
    unfuse_experts(model)
    torch.testing.assert_close(logits(model, TOKENS), expected, rtol=1e-6, atol=1e-6)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model = unfuse_experts(fused_model("mixtral").train())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_experts_stays_as_it_is():
    model = family_model("llama")
    before = {name: id(module) for name, module in model.named_modules()}
    assert {name: id(module) for name, module in unfuse_experts(model).named_modules()} == before


@each_mixture
@pytest.mark.parametrize("kinds", [("experts",), ("experts", "heads", "mlp"), ("experts", "layers")], ids="+".join)
def test_masked_experts_are_compacted_experts(name, kinds):
    model = family_model(name)
    dense, plan = logits(model, TOKENS), plan_of(model, 0.3, kinds, "per-layer", "global", unequal(model))
    assert plan.lost_experts
    with mask(model, plan):
        masked = logits(model, TOKENS)
        for layer in plan.kept_layers:
            chosen = model.model.layers[layer].mlp.gate(torch.randn(64, 48))[-1]
            assert set(chosen.unique().tolist()) <= set(plan.kept_experts(layer))
    assert torch.equal(logits(model, TOKENS), dense)
    assert not torch.allclose(masked, dense, atol=1e-3)
    compact(model, plan)
    assert sum(p.numel() for p in model.parameters()) == plan.params_after
    torch.testing.assert_close(logits(model, TOKENS), masked, rtol=1e-5, atol=1e-5)


@each_mixture
@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
def test_a_checkpoint_with_fewer_experts_opens_and_generates(name, shape, tmp_path):
    model = family_model(name)
    plan = plan_of(model, 0.25, ("experts",), shape, "uniform" if shape == "uniform" else "global", unequal(model))
    compact(model, plan)
    assert [len(layer.mlp.expert) for layer in model.model.layers] == ([3] * 3 if shape == "uniform" else [2, 4, 3])
    saved = save(model, None, tmp_path / "out", proof=False)
    config = json.loads((saved.path / "config.json").read_text())
    assert ("auto_map" in config) == (shape == "per-layer")
    again, info = getattr(transformers, saved.loads_with.partition(".")[0]).from_pretrained(
        saved.path, output_loading_info=True, trust_remote_code="auto_map" in config
    )
    assert not any(info.values()), info
    torch.testing.assert_close(logits(again.eval(), TOKENS), logits(model, TOKENS), rtol=1e-5, atol=1e-5)
    assert find_groups(unfuse_experts(again)) == find_groups(model)
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached, plain = (model.generate(TOKENS[:2, :5], use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)


@each_mixture
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_layer_keeps_as_many_experts_as_a_token_is_sent_to(name, allocation):
    model = family_model(name)
    plan = plan_of(model, 0.5, allocation=allocation, shape="per-layer", scores=unequal(model))
    assert [len(plan.kept_experts(layer)) for layer in range(3)] == [2, 2, 2]
    assert plan.reached == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ValueError, match=r"at most 0\.500 \(a token is sent to 2 experts"):
        plan_of(model, 0.7, allocation=allocation)
    keep = {name: kept for name, kept in plan.keep.items() if name != f"layers.1.experts.{plan.kept_experts(1)[0]}.mlp"}
    with pytest.raises(ValueError, match="keeps 1 experts of layer 1, and a token is sent to 2"):
        mask(model, replace(plan, keep=keep)).__enter__()


@each_mixture
@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
def test_the_loss_that_balances_experts_knows_how_many_are_left(name, shape):
    model = family_model(name, output_router_logits=True)
    compact(model, plan_of(model, 0.25, ("experts",), shape, "global", unequal(model)))
    found = model(input_ids=TOKENS, labels=TOKENS)
    assert found.loss.isfinite()
    assert (found.aux_loss is None) == (shape == "per-layer") == (not model.config.output_router_logits)


def test_samples_of_one_token_are_refused():
    model, tokens = family_model("mixtral"), tiny_tokens(4, 1)
    with pytest.raises(ValueError, match=r"samples have 1 token.* a mixture of experts needs at least 2"):
        pruneengine.calibrate(model, tokens)
    with pytest.raises(ValueError, match="a mixture of experts needs at least 2"):
        pruneengine.sparsify(model, tokens, SparseConfig("wanda", 0.5))


def test_a_share_that_experts_could_exceed_is_not_blamed_on_the_router():
    with pytest.raises(ValueError, match=r"at most 0\.379 \(whole experts take no more than half of what they share"):
        plan_of(family_model("mixtral"), 0.5, ("heads", "experts"))


def test_many_experts_are_gathered_without_comparing_groups(monkeypatch):
    structure = find_groups(family_model("qwen2_moe"))
    monkeypatch.setattr(Group, "__eq__", lambda *_: pytest.fail("compared"))
    assert structure.scored(("mlp", "experts"), range(1, 3)) == tuple(
        g for g in structure.groups if g.layer and g.kind == "mlp"
    )
    assert [g.name for g in structure.scored(("experts",), range(1))] == [g.name for g in structure.experts(0)]


def test_a_uniform_plan_takes_as_many_of_every_layer_and_widths_make_up_the_rest():
    model = family_model("qwen2_moe")
    structure = find_groups(model)
    plan = plan_of(model, 0.5, ("experts", "mlp"), scores=unequal(model), allocation="global")
    assert len({len(plan.kept_experts(layer)) for layer in range(3)}) == 1
    widths = {len(kept) for name, kept in plan.keep.items() if structure.by_name[name].part == "experts.mlp"}
    assert len(widths) == 1
    assert max(widths) < 24
    assert plan.reached == pytest.approx(0.5, abs=0.06)
    assert Plan.from_json(plan.to_json()) == plan


def test_the_least_important_experts_go():
    model = family_model("mixtral")
    plan = plan_of(model, 0.25, allocation="global", shape="per-layer", scores=unequal(model))
    assert plan.lost_experts == ("layers.0.experts.1.mlp", "layers.0.experts.2.mlp", "layers.2.experts.3.mlp")


def test_a_model_without_experts_cannot_lose_any():
    with pytest.raises(ValueError, match="kinds name experts, and llama has none"):
        plan_of(family_model("llama"))


@each_mixture
def test_prune_takes_a_fused_model_and_whole_experts(name):
    model = fused_model(name)
    report = pruneengine.prune(model, TOKENS, PruneConfig(method="wanda", ratio=0.25, structure=("experts",)))
    assert [len(layer.mlp.expert) for layer in model.model.layers] == [3, 3, 3]
    assert sum(p.numel() for p in model.parameters()) == report.plan.params_after


def test_zeros_of_experts_are_found_in_a_saved_checkpoint(tmp_path):
    model = family_model("mixtral")
    report = pruneengine.sparsify(model, TOKENS, SparseConfig(method="wanda", sparsity=0.5))
    saved = save(model, None, tmp_path / "out", proof=False)
    assert count_saved_zeros(saved.path, report.plan.removed) == report.plan.removed


def test_a_search_refuses_plans_that_drop_experts():
    model = family_model("mixtral")
    objective = Objective(model, Samples(TOKENS, ("text",) * len(TOKENS)), batch=2)
    with pytest.raises(ValueError, match="drops whole experts"):
        objective.evaluate([MaskedPlan(plan_of(model))])


def test_layers_without_experts_are_refused():
    model_type, options = FAMILIES["qwen2_moe"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options, mlp_only_layers=[1]))
    with pytest.raises(ValueError, match=r"layers\.1 has no experts"):
        find_groups(unfuse_experts(model))


def test_plans_of_experts_are_shown_layer_by_layer():
    model = family_model("qwen2_moe")
    plan = plan_of(model, 0.25, allocation="global", shape="per-layer", scores=unequal(model))
    columns = plan_columns(plan)
    assert columns["experts"] == {"units": [4, 4, 4], "kept": [2, 4, 3], "which": ["1001", "1111", "1110"]}
    assert columns["experts.mlp"] == {"units": [96, 96, 96], "kept": [48, 96, 72]}
    assert list(columns) == ["heads", "mlp", "experts.mlp", "experts"]


@each_mixture
def test_recovery_trains_experts(name, tmp_path):
    pytest.importorskip("peft")
    model = family_model(name)
    compact(model, plan_of(model, 0.4, ("experts", "mlp")))
    shapes = {path: parameter.shape for path, parameter in model.named_parameters()}
    before = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
    config = RecoverConfig(lora_r=2, max_steps=3, lr=1e-2, batch=2, micro_batch=2, warmup=0, val_rows=0)
    report = pruneengine.recover(model, None, config, data=tiny_tokens(12, 16), work_dir=tmp_path)
    assert report.steps == 3
    assert {path: parameter.shape for path, parameter in model.named_parameters()} == shapes
    changed = {path for path, parameter in model.named_parameters() if not torch.equal(parameter, before[path])}
    assert "model.layers.1.mlp.expert.0.down_proj.weight" in changed
    assert not any(".mlp.gate." in path for path in changed)
    assert model.config.model_type == name
    assert logits(model, TOKENS).isfinite().all()
