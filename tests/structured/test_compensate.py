"""Kept units make up for removed ones: what is recovered, what is chosen, and what a checkpoint carries of it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import pruneengine as pe
from pruneengine.checkpoint.write import save
from pruneengine.model import find_groups, get_linear
from pruneengine.structured.apply import Correction, compact, mask
from pruneengine.structured.compensate import RIDGES, bias_corrections, channel_means, compensate
from pruneengine.structured.ridge import Moments, solve
from tests.helpers.tiny import VARIANTS, logits, tiny_model, tiny_tokens


def plan_for(model, ratio=0.4, kinds=("heads", "mlp"), shape="uniform", seed=0):
    structure = find_groups(model)
    scores = pe.score(model, "random", structure=structure, seed=seed)
    ratios = pe.allocate(structure, scores, ratio, kinds=kinds)
    return pe.make_plan(structure, scores, ratios, ratio, kinds=kinds, shape=shape)


def with_twins(model, plan):
    """Every removed channel becomes twice what a kept one is, and every removed KV group the same as a kept one."""
    for name, kept in plan.keep.items():
        group = find_groups(model).by_name[name]
        for unit in set(range(group.units)) - set(kept):
            for member in group.members[:-1]:
                linear, width = get_linear(model, member.module), member.width
                rows = linear.weight.detach()[kept[0] * width : (kept[0] + 1) * width]
                factor = 2 if member.module.endswith("up_proj") else 1
                with torch.no_grad():
                    linear.weight[unit * width : (unit + 1) * width] = factor * rows
    return model


@pytest.mark.parametrize("mode", ["one-shot", "sequential"])
def test_what_kept_units_can_say_is_recovered(mode):
    model, tokens = tiny_model(), tiny_tokens(24, 24)
    plan = plan_for(model)
    with_twins(model, plan)
    dense = logits(model, tokens)
    with mask(model, plan):
        assert not torch.allclose(logits(model, tokens), dense, atol=0.1), "something must be missing"
    found = compensate(model, plan, tokens, "least-squares", mode=mode)
    assert torch.equal(logits(model, tokens), dense), "the model must be left as it was"
    assert [g.ridge for g in found.groups] == [1e-4] * len(plan.keep)
    assert all(g.after < 1e-4 < g.before for g in found.groups)
    compact(model, plan, corrections=found.corrections)
    left = (logits(model, tokens) - dense).square().mean() / dense.var()
    assert left < 1e-4


@pytest.mark.parametrize("how", ["bias", "least-squares"])
@pytest.mark.parametrize("mode", ["one-shot", "sequential"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_and_compacted_agree_with_corrections(variant, mode, how):
    model, tokens = tiny_model(variant), tiny_tokens(12, 24)
    plan = plan_for(model)
    dense = logits(model, tokens)
    found = compensate(model, plan, tokens, how, mode=mode, batch_size=5)
    assert found.corrections
    with mask(model, plan) as masked:
        plain = logits(masked, tokens)
    with mask(model, plan, corrections=found.corrections) as masked:
        expected = logits(masked, tokens)
    assert torch.equal(logits(model, tokens), dense), "the mask must leave nothing behind"
    assert not torch.allclose(expected, plain, atol=1e-2)
    compact(model, plan, corrections=found.corrections)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-4, atol=1e-4)
    structure = find_groups(model)
    assert structure.total_params == sum(p.numel() for p in model.parameters())
    if how == "least-squares":
        assert structure.total_params == plan.params_after
        assert all(g.after <= g.before for g in found.groups)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bias_is_what_means_in_place_of_removed_inputs_give(variant):
    model, tokens = tiny_model(variant), tiny_tokens(10, 24)
    structure, plan = find_groups(model), plan_for(model)
    statistics = pe.calibrate(model, tokens, {"sum"}, structure=structure)
    means = channel_means(structure, statistics)
    with mask(model, plan, means=means) as masked:
        expected = logits(masked, tokens)
    for corrections in (
        bias_corrections(model, structure, plan, means),
        compensate(model, plan, tokens, "bias", mode="one-shot", batch_size=3).corrections,
    ):
        with mask(model, plan, corrections=corrections) as masked:
            torch.testing.assert_close(logits(masked, tokens), expected, rtol=1e-4, atol=1e-4)
    compact(model, plan, corrections=bias_corrections(model, structure, plan, means))
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-4, atol=1e-4)


def test_sequential_reads_what_pruned_layers_give():
    model, tokens = tiny_model(), tiny_tokens(16, 24)
    plan = plan_for(model)
    one_shot, sequential = (
        compensate(model, plan, tokens, "least-squares", mode=mode).corrections for mode in ("one-shot", "sequential")
    )
    first, *later = one_shot
    torch.testing.assert_close(sequential[first].weight, one_shot[first].weight, rtol=1e-4, atol=1e-4)
    for path in set(later) & sequential.keys():
        assert not torch.allclose(sequential[path].weight, one_shot[path].weight, rtol=0.05, atol=0.01), path


@pytest.mark.parametrize("mode", ["one-shot", "sequential"])
def test_a_refit_is_never_blind(mode):
    """Two short samples teach little: weaker ridges lose on the held-out one, and nothing worse than none is taken."""
    found = compensate(tiny_model(), plan_for(tiny_model()), tiny_tokens(2, 4), "least-squares", mode=mode)
    assert any(g.ridge is None or g.ridge > RIDGES[0] for g in found.groups)
    assert all((g.ridge is None) == (g.after == g.before) for g in found.groups)
    assert all(g.after <= g.before for g in found.groups)


def test_the_result_does_not_depend_on_the_batches():
    model, tokens = tiny_model(), tiny_tokens(9, 16)
    plan = plan_for(model)
    one, other = (compensate(model, plan, tokens, "least-squares", batch_size=b) for b in (1, 8))
    assert [g.ridge for g in one.groups] == [g.ridge for g in other.groups]
    for path, correction in one.corrections.items():
        torch.testing.assert_close(correction.weight, other.corrections[path].weight, rtol=1e-2, atol=1e-3)


def test_dropped_layers_and_protected_ones_are_passed():
    model, tokens = tiny_model(), tiny_tokens(8, 16)
    structure = find_groups(model)
    plan = plan_for(model, kinds=("mlp",))
    keep = {n: u for n, u in plan.keep.items() if not n.startswith("layers.1.")}
    keep["layers.0.mlp"] = tuple(range(structure.by_name["layers.0.mlp"].units))
    plan = pe.Plan(**(vars(plan) | {"keep": keep, "kept_layers": (0, 2), "shape": "per-layer"}))
    found = compensate(model, plan, tokens, "bias")
    assert [g.group for g in found.groups] == ["layers.2.mlp"]
    with mask(model, plan, corrections=found.corrections) as masked:
        expected = logits(masked, tokens)
    compact(model, plan, corrections=found.corrections)
    assert [layer.mlp.down_proj.bias is not None for layer in model.model.layers] == [True, True]
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoints_with_biases_reload(variant, tmp_path):
    model, tokens = tiny_model(variant), tiny_tokens(6, 16)
    config = pe.PruneConfig(method="magnitude_l1", ratio=0.4, structure=("mlp",), compensate="bias")
    report = pe.prune(model, tokens, config)
    assert len(report.compensation.corrections) == 3
    saved = save(model, None, tmp_path / "out", proof=False)
    written = json.loads((saved.path / "config.json").read_text())
    plain = variant.startswith("llama")
    again, info = AutoModelForCausalLM.from_pretrained(
        saved.path, trust_remote_code=not plain, output_loading_info=True, dtype="auto"
    )
    assert not any(info.values()), info
    assert torch.equal(logits(again.eval(), tokens), logits(model, tokens))
    assert find_groups(again) == find_groups(model)
    if plain:
        assert written["mlp_bias"] is True
        assert "auto_map" not in written
    else:
        assert written["pruneengine_biases"] == ["mlp.down_proj"]
        assert "trust_remote_code=True" in saved.loads_with
        assert "Biases stand in" in (saved.path / "README.md").read_text()


def test_biases_and_unequal_widths_travel_together(tmp_path):
    model, tokens = tiny_model("mistral-sliding"), tiny_tokens(6, 16)
    config = pe.PruneConfig(
        method="magnitude_l1", ratio=0.4, layers=(1, 3), compensate="bias", compensate_mode="one-shot"
    )
    pe.prune(model, tokens, config)
    saved = save(model, None, tmp_path / "out", proof=True)
    written = json.loads((saved.path / "config.json").read_text())
    assert written["pruneengine_biases"] == ["self_attn.o_proj", "mlp.down_proj"]
    assert "pruneengine_widths" in written
    assert saved.proof.argmax_agreement == 1


def test_a_weak_factor_takes_a_stronger_ridge():
    x = torch.ones(8, 3)
    moments = Moments.empty(3, 2, x.device)
    moments.add(x, torch.ones(8, 2), torch.ones(8, 2))
    delta, ridge = solve(moments, 0.0 + 1e-30)
    assert ridge > 1e-30
    assert moments.error(delta=delta) < 1e-6 * moments.energy
    nothing, _ = solve(Moments.empty(3, 2, x.device), 1e-4)
    assert not nothing.any()


def test_errors_from_sums_equal_errors_from_tokens():
    generator = torch.Generator().manual_seed(0)
    x, missing = torch.randn(50, 4, generator=generator), torch.randn(50, 3, generator=generator)
    moments = Moments.empty(4, 3, x.device)
    for rows in (slice(0, 20), slice(20, 50)):
        moments.add(x[rows], missing[rows], missing[rows])
    delta, bias = torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)
    expected = float((missing - x @ delta.T).square().sum())
    assert moments.error(delta=delta.double()) == pytest.approx(expected, rel=1e-5)
    assert moments.error(bias=bias.double()) == pytest.approx(float((missing - bias).square().sum()), rel=1e-5)
    best, _ = solve(moments, 1e-9)
    torch.testing.assert_close(best.float(), torch.linalg.lstsq(x, missing).solution.T, rtol=1e-3, atol=1e-4)


def test_inputs_that_are_not_finite_name_the_layer():
    model = tiny_model()
    plan = plan_for(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj is not finite"):
        compensate(model, plan, tiny_tokens(), "least-squares")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compensate": "ridge"}, "unknown compensation 'ridge'; choose from none, bias, least-squares"),
        ({"compensate_mode": "twice"}, "unknown compensation mode 'twice'"),
        ({"compensate_mode": "one-shot"}, "compensate is 'none': it does nothing"),
        ({"compensate": "bias", "structure": "layers"}, "whole layers leave no channel"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pe.PruneConfig(**changes)


@pytest.mark.parametrize("batches", [None, tiny_tokens(1)])
def test_calibration_text_is_needed_before_work_is_spent(batches):
    model = tiny_model()
    before = logits(model, tiny_tokens())
    with pytest.raises(ValueError, match="compensation 'bias' needs at least 2 calibration samples"):
        pe.prune(model, batches, pe.PruneConfig(method="magnitude_l1", compensate="bias"))
    assert torch.equal(logits(model, tiny_tokens()), before)


def test_corrections_that_do_not_fit_change_nothing():
    model = tiny_model()
    plan, before = plan_for(model, kinds=("mlp",)), logits(model, tiny_tokens())
    module = "model.layers.0.mlp.down_proj"
    for corrections, message in (
        ({"model.layers.0.self_attn.o_proj": Correction(bias=torch.zeros(60))}, "removes nothing that it reads"),
        ({module: Correction(weight=torch.zeros(60, 3))}, r"weight is \(60, 3\), expected \(60, "),
    ):
        with pytest.raises(ValueError, match=message):
            compact(model, plan, corrections=corrections)
    with pytest.raises(ValueError, match="give one of them"), mask(model, plan, means={}, corrections={}):
        pass
    assert torch.equal(logits(model, tiny_tokens()), before)
