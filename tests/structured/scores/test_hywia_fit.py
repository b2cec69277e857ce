"""Variant "c": the fit against finite differences, its promises, and the paths that lead to it."""

from dataclasses import replace

import pytest
import torch

import pruneengine
from pruneengine import PruneConfig
from pruneengine.calibration.calibrate import calibrate
from pruneengine.data.samples import as_samples
from pruneengine.model import find_groups
from pruneengine.model.masking import gate
from pruneengine.structured.apply import mask
from pruneengine.structured.prune import split_samples
from pruneengine.structured.scores.hywia import HyWIA
from pruneengine.structured.scores.hywia_attention import LearnedAttention
from pruneengine.structured.scores.hywia_fit import _gate, _loss, _loss_backward, _Scores, fit
from pruneengine.structured.scores.score import score
from tests.helpers.tiny import logits, tiny_model, tiny_tokens

CONFIG = PruneConfig(method="hywia", ratio=0.5, round_to=1, hywia_variant="c", hywia_steps=12, hywia_samples=6)


@pytest.fixture(scope="module")
def case():
    model = tiny_model()
    structure = find_groups(model)
    statistics = calibrate(model, tiny_tokens(6), ("signed", "abs_mean"))
    blend = score(model, "hywia", statistics, hywia=HyWIA(blend=0.5)).blend
    return model, structure, blend, {g.name: g.units // 2 for g in structure.groups}


def test_the_fit_is_deterministic_and_never_worse_than_the_equal_blend(case):
    samples = as_samples(tiny_tokens(6, seed=2))
    first, second = (fit(*case, samples, HyWIA("c"), steps=12, seed=4) for _ in range(2))
    assert first.losses == second.losses
    assert first.checks == second.checks
    assert torch.equal(first.options.attention.key, second.options.attention.key)
    assert list(first.checks) == [0, 4, 8, 12]
    assert first.checks[first.best] == min(first.checks.values()) <= first.checks[0]
    other = fit(*case, samples, HyWIA("c"), steps=12, seed=5)
    assert other.losses[0] == first.losses[0]
    assert other.losses[-1] != first.losses[-1]


def test_the_model_is_left_alone(case):
    model = case[0].train()
    model.lm_head.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(*case, as_samples(tiny_tokens(3)), HyWIA("c"), steps=2)
    assert model.training
    assert not model.lm_head.weight.requires_grad
    assert model.model.layers[0].mlp.up_proj.weight.requires_grad
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    model.requires_grad_(True).eval()


def test_a_gate_gets_the_gradient_of_the_loss(case):
    model, structure, *_ = case
    name, tokens = "layers.1.mlp", tiny_tokens(2)
    gates = torch.rand(72, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    model.double()
    try:
        with gate(model, structure, {name: gates}):
            _loss_backward(model, tokens)
        for unit in (0, 17):
            values = []
            # Norms compute in float32 whatever the model's dtype: a smaller step drowns in their rounding.
            for step in (-3e-3, 3e-3):
                moved = gates.detach().index_add(0, torch.tensor([unit]), torch.tensor([step], dtype=torch.float64))
                with gate(model, structure, {name: moved}):
                    values.append(_plain_loss(model, tokens))
            assert float(gates.grad[unit]) == pytest.approx((values[1] - values[0]) / 6e-3, rel=5e-3)
    finally:
        model.float()


def _plain_loss(model, tokens) -> float:
    out = logits(model, tokens)[:, :-1]
    return float(torch.nn.functional.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten()))


def test_hard_gates_are_the_mask_of_the_plan(case):
    model, structure, blend, removed = case
    scores = _Scores(structure, blend, removed)
    hard = scores.gates(LearnedAttention.initial(), 1.0, hard=True)
    assert {name: int((gates == 0).sum()) for name, gates in hard.items()} == removed
    statistics = calibrate(model, tiny_tokens(6), ("signed", "abs_mean"))
    equal = score(model, "hywia", statistics, hywia=HyWIA(blend=0.5))
    plan = pruneengine.make_plan(structure, equal, pruneengine.allocate(structure, equal, 0.5), 0.5, round_to=1)
    counts = {name: structure.by_name[name].units - len(kept) for name, kept in plan.keep.items()}
    hard = _Scores(structure, blend, counts).gates(LearnedAttention.initial(), 1.0, hard=True)
    with torch.no_grad(), gate(model, structure, hard):
        found, loss = logits(model, tiny_tokens()), _loss(model, [tiny_tokens()])
    with mask(model, plan):
        expected = logits(model, tiny_tokens())
        assert loss == pytest.approx(_plain_loss(model, tiny_tokens()), rel=1e-5)
    assert torch.equal(found, expected)


def test_soft_gates_step_between_what_goes_and_what_stays():
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0, 9.0], dtype=torch.float64)
    soft = _gate(scores, 2, hard=False)
    assert (soft < 0.5).tolist() == [False, True, False, True, False]
    torch.testing.assert_close(_gate(scores * 1e-6, 2, hard=False), soft)
    assert _gate(torch.ones(4, dtype=torch.float64), 2, hard=False).tolist() == [0.5] * 4


def test_prune_holds_the_last_samples_out_of_the_statistics():
    tokens = tiny_tokens(10)
    model, other = tiny_model(), tiny_model()
    report = pruneengine.prune(model, tokens, CONFIG)
    assert report.statistics.data == as_samples(tokens[:4]).hash
    assert report.fit.best in report.fit.checks
    assert "fit" in report.seconds
    reused = pruneengine.prune(other, tokens, CONFIG, statistics=report.statistics)
    assert reused.plan == report.plan
    rest, held_out = split_samples(as_samples(tokens), CONFIG)
    assert torch.equal(torch.cat([rest.tokens, held_out.tokens]), tokens)
    assert split_samples(rest, PruneConfig("hywia", hywia_blend=0.5)) == (rest, None)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "method 'hywia' is fitted on calibration batches, got none"),
        (tiny_tokens(6), "6 calibration samples: method 'hywia' holds 6 of them out"),
    ],
)
def test_a_fit_without_samples_is_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        pruneengine.prune(tiny_model(), batches, CONFIG)


def test_too_small_a_fit_is_refused(case):
    with pytest.raises(ValueError, match=r"samples \(1, 16\): a fit needs at least two"):
        fit(*case, as_samples(tiny_tokens(1)), HyWIA("c"))
    with pytest.raises(ValueError, match="hywia_samples must be at least 2, got 1"):
        replace(CONFIG, hywia_samples=1)


def test_statistics_of_the_held_out_samples_are_refused():
    model, tokens = tiny_model(), tiny_tokens(8)
    statistics = calibrate(model, tokens, CONFIG.needs)
    with pytest.raises(ValueError, match="the statistics were collected on all 8 samples"):
        pruneengine.prune(model, tokens, CONFIG, statistics=statistics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wanda", "hywia_blend": 0.5}, "hywia_blend is 0.5: an option of method 'hywia', got 'wanda'"),
        ({"hywia_variant": "c", "hywia_blend": 0.5}, "hywia_blend is 0.5: variant 'c' fits the blend"),
        ({"hywia_variant": "c", "structure": "mlp,layers"}, "kinds must not name layers, got mlp,layers"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PruneConfig(**{"method": "hywia", "ratio": 0.3} | options)


def test_the_default_is_fitted_where_something_can_be():
    assert PruneConfig("hywia").hywia.variant == "c"
    assert PruneConfig("hywia").holds_out == 8
    for options in ({"structure": "heads,layers"}, {"hywia_blend": 0.5}, {"hywia_variant": "a"}):
        assert not PruneConfig("hywia", **options).holds_out
    assert PruneConfig("vectorize").holds_out == 0
