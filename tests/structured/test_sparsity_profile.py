"""The allocation that follows unstructured pruning."""

from dataclasses import replace

import pytest
import torch

import pruneengine
from pruneengine import PruneConfig
from pruneengine.calibration.calibrate import calibrate
from pruneengine.model import find_groups, get_linear
from pruneengine.structured.allocate import allocate
from pruneengine.structured.scores.score import score
from pruneengine.structured.sparsity_profile import sparsity_profile
from tests.helpers.tiny import tiny_model, tiny_tokens


def oracle(model, structure, statistics, ratio, groups):
    """By sorting all weights in float64."""
    scores = {}
    for group in groups:
        parts = []
        for member in group.members:
            norm = statistics.get("squares", member.site).double().mean(0).sqrt()
            parts.append((get_linear(model, member.module).weight.detach().double().abs() * norm).flatten())
        scores[group.name] = torch.cat(parts)
    everything = torch.cat(list(scores.values())).sort().values
    threshold = everything[round(ratio * len(everything)) - 1]
    return {name: float((values <= threshold).double().mean()) for name, values in scores.items()}


@pytest.mark.parametrize("variant", ["llama-gqa-tied", "qwen2-biases"])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_the_profile_is_a_float64_count(variant, ratio):
    model = tiny_model(variant)
    structure = find_groups(model)
    statistics = calibrate(model, tiny_tokens(), ("squares",))
    for kinds, layers in ((("heads", "mlp"), None), (("mlp",), None), (("heads", "mlp"), range(1, 3))):
        found = sparsity_profile(model, structure, statistics, ratio, kinds=kinds, layers=layers)
        groups = structure.of_kind(kinds, layers)
        expected = oracle(model, structure, statistics, ratio, groups)
        weights = {g.name: sum(get_linear(model, m.module).weight.numel() for m in g.members) for g in groups}
        # A float32 product may fall on the other side of the threshold than a float64 one: one weight at most.
        assert all(abs(found[name] - expected[name]) * weights[name] <= 1 for name in expected)
        whole = sum(found[name] * weights[name] for name in found)
        assert whole == pytest.approx(round(ratio * sum(weights.values())), abs=1e-6)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_the_ratios_meet_the_budget_and_keep_the_profile(ratio):
    model = tiny_model()
    structure = find_groups(model)
    statistics = calibrate(model, tiny_tokens(), ("squares",))
    scores = score(model, "magnitude_l1")
    profile = sparsity_profile(model, structure, statistics, ratio)
    ratios = allocate(structure, scores, ratio, allocation="unstructured", profile=profile)
    spent = sum(ratios[g.name] * g.params for g in structure.groups)
    assert spent == pytest.approx(ratio * structure.prunable_params(("heads", "mlp")))
    assert all(ratios[g.name] <= 1 - 1 / g.units + 1e-12 for g in structure.groups)
    if ratio < 0.6:
        assert ratios == pytest.approx(profile, rel=1e-3)


def test_a_full_group_passes_the_rest_on():
    structure = find_groups(tiny_model())
    scores = score(tiny_model(), "magnitude_l1")
    profile = {g.name: 1.0 if g.layer == 0 else 0.0 for g in structure.groups}
    ratios = allocate(structure, scores, 0.5, allocation="unstructured", profile=profile)
    assert sum(ratios[g.name] * g.params for g in structure.groups) == pytest.approx(
        0.5 * structure.prunable_params(("heads", "mlp"))
    )
    assert ratios["layers.0.mlp"] == pytest.approx(71 / 72)
    assert ratios["layers.1.mlp"] == pytest.approx(ratios["layers.2.heads"])


def test_a_layer_range_takes_the_whole_target():
    model = tiny_model()
    config = PruneConfig(method="magnitude_l1", ratio=0.3, allocation="unstructured", layers=(1, 3), round_to=1)
    plan = pruneengine.prune(model, tiny_tokens(), config).plan
    assert abs(plan.reached - 0.3) < 0.01
    assert len(plan.keep["layers.0.mlp"]) == 72


@pytest.mark.parametrize("structure", ["heads,mlp", "mlp", "heads,mlp,layers", "layers"])
def test_prune_by_it(structure):
    config = PruneConfig("wanda", 0.4, structure, "unstructured", "per-layer", round_to=1)
    report = pruneengine.prune(tiny_model(), tiny_tokens(), config)
    assert abs(report.plan.reached - 0.4) < 0.07
    assert ("profile" in report.seconds) == (structure != "layers")


def test_what_it_needs_is_named():
    config = PruneConfig("magnitude_l1", 0.4, allocation="unstructured")
    assert config.needs == {"squares"}
    model = tiny_model()
    with pytest.raises(ValueError, match="needs calibration batches or statistics"):
        pruneengine.prune(model, None, config)
    signed = calibrate(model, tiny_tokens(), ("signed",))
    with pytest.raises(ValueError, match="allocation 'unstructured' needs the quantity 'squares'; collected: signed"):
        pruneengine.prune(model, config=replace(config, method="vectorize"), statistics=signed)
    structure = find_groups(model)
    with pytest.raises(ValueError, match=r"needs a profile; it holds no ratio for layers.0.heads"):
        allocate(structure, score(model, "magnitude_l1"), 0.4, allocation="unstructured")
    with pytest.raises(ValueError, match="allocation must not be 'unstructured'"):
        PruneConfig(allocation="unstructured", protocol="llm-pruner")
