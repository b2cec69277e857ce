"""Statistics of experts: tokens that each was sent, and experts that were sent none."""

import pytest
import torch

import pruneengine
from pruneengine.model import find_groups
from pruneengine.sparse.config import SparseConfig
from pruneengine.structured.apply import compact, mask
from pruneengine.structured.compensate import bias_corrections, channel_means
from pruneengine.structured.config import PruneConfig
from tests.helpers.families import family_model
from tests.helpers.tiny import logits, tiny_tokens
from tests.model.test_experts import TOKENS, each_mixture, plan_of


def routed_away(name, layer=1, expert=2):
    """Return a model whose router sends no token to one expert: no input can make that row's logit the larger one."""
    model = family_model(name)
    gate = model.model.layers[layer].mlp.gate
    own = gate.forward

    def forward(hidden):
        outcome = own(hidden)
        logits = outcome[0].masked_fill(torch.arange(4) == expert, -torch.inf)
        weights, chosen = logits.softmax(-1).topk(2)
        return logits, weights, chosen

    gate.forward = forward
    return model


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("mode", ["sequential", "one-shot"])
def test_weights_of_an_expert_without_tokens_go_by_magnitude(method, mode):
    model = routed_away("mixtral")
    expert = model.model.layers[1].mlp.expert[2]
    dense = expert.up_proj.weight.detach().clone()
    report = pruneengine.sparsify(model, TOKENS, SparseConfig(method=method, sparsity=0.5, mode=mode))
    assert report.warnings == (
        "no calibration token was sent to layers.1.experts.2: its weights go by magnitude alone",
    )
    gone, left = dense[expert.up_proj.weight == 0].abs(), dense[expert.up_proj.weight != 0].abs()
    assert len(gone) == report.plan.removed["model.layers.1.mlp.expert.2.up_proj"]
    assert gone.mean() < 0.6 * left.mean()
    assert torch.equal(expert.up_proj.weight[expert.up_proj.weight != 0], dense[expert.up_proj.weight != 0])


@pytest.mark.parametrize("method", ["wanda", "vectorize", "param_first", "hywia"])
def test_an_expert_without_tokens_is_the_first_to_go(method):
    model = routed_away("qwen2_moe")
    options = {"hywia_blend": 0.5} if method == "hywia" else {}
    config = PruneConfig(
        method=method, ratio=0.1, structure=("experts",), allocation="global", shape="per-layer", **options
    )
    report = pruneengine.prune(model, TOKENS, config)
    assert report.plan.lost_experts == ("layers.1.experts.2.mlp",)
    assert report.warnings[0].startswith("no calibration token was sent to layers.1.experts.2: by the statistics")


@pytest.mark.parametrize("how", ["bias", "least-squares"])
def test_compensation_bears_an_expert_without_tokens(how):
    model = routed_away("mixtral")
    plan = plan_of(model, 0.3, ("mlp",))
    found = pruneengine.compensate(model, plan, TOKENS, how, held_out=0.5)
    compact(model, plan, corrections=found.corrections)
    assert logits(model, TOKENS).isfinite().all()


@each_mixture
def test_means_are_over_the_tokens_that_an_expert_was_sent(name):
    model = family_model(name)
    structure = find_groups(model)
    statistics = pruneengine.calibrate(model, TOKENS, ("sum", "squares"), batch_size=3)
    seen = []
    path = "model.layers.1.mlp.expert.0.down_proj"
    with model.get_submodule(path).register_forward_pre_hook(lambda _m, args: seen.append(args[0])):
        logits(model, TOKENS)
    rows = seen[0].flatten(0, 1)
    rows = rows[rows.any(-1)]
    assert 0 < len(rows) < TOKENS.numel()
    assert statistics.tokens("layers.1.experts.0.down_in") * len(TOKENS) == pytest.approx(len(rows))
    assert statistics.tokens("layers.1.attn_in") == TOKENS.shape[1]
    means = channel_means(structure, statistics)["layers.1.experts.0.mlp"]
    torch.testing.assert_close(means, rows.mean(0), rtol=1e-4, atol=1e-6)


@each_mixture
def test_a_bias_is_what_removed_channels_gave_on_average(name):
    model = family_model(name)
    plan = plan_of(model, 0.3, ("mlp",))
    structure, statistics = find_groups(model), pruneengine.calibrate(model, TOKENS, ("sum",))
    means = channel_means(structure, statistics)
    corrections = bias_corrections(model, structure, plan, means)
    with mask(model, plan, means=means):
        expected = logits(model, TOKENS)
    with mask(model, plan, corrections=corrections):
        torch.testing.assert_close(logits(model, TOKENS), expected, rtol=1e-4, atol=1e-5)
    fitted = pruneengine.compensate(model, plan, TOKENS, "bias", mode="one-shot", held_out=0.5).corrections
    for path, correction in fitted.items():
        torch.testing.assert_close(correction.bias, corrections[path].bias, rtol=1e-3, atol=1e-5)


def test_statistics_of_subsets_are_those_of_their_samples_alone():
    model, tokens = family_model("mixtral"), tiny_tokens(6, 12)
    options = {"quantities": ("squares", "signed", "abs_mean", "mix")}
    together = pruneengine.calibrate(model, tokens, **options, subsets={"some": (0, 2, 5)}, batch_size=2)
    expected, found = pruneengine.calibrate(model, tokens[[0, 2, 5]], **options), together.of_subset("some")
    for quantity, named in expected.tensors.items():
        for name in named:
            torch.testing.assert_close(found.mean(quantity, name), expected.mean(quantity, name), rtol=1e-3, atol=1e-6)
