"""The search's inner evaluation: equal to masking, in every layout, however candidates share a forward pass."""

import pytest
import torch

import pruneengine as pe
from pruneengine.data.samples import Samples
from pruneengine.search.adapruner import objective as module
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from tests.helpers.tiny import VARIANTS, tiny_model, tiny_tokens


def plans(model, structure):
    scores = pe.score(model, "magnitude_l1", structure=structure)
    uniform = [pe.make_plan(structure, scores, pe.allocate(structure, scores, r), r, round_to=1) for r in (0.3, 0.6)]
    late = pe.allocate(structure, scores, 0.2, layers=range(1, 3))
    return [*uniform, pe.make_plan(structure, scores, late, 0.2, shape="per-layer", round_to=1)]


def blocks(count=7, length=20):
    return Samples(tiny_tokens(count, length), ("text",) * count)


def masked_loss(model, plan, samples):
    with pe.mask(model, plan):
        pruned = pe.perplexity(model, samples).per_window
    return pruned - pe.perplexity(model, samples).per_window


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_losses_are_those_of_the_masked_model(variant, batch):
    model = tiny_model(variant)
    structure = pe.find_groups(model)
    candidates = plans(model, structure)
    objective = Objective(model, blocks(), structure=structure, batch=batch)
    together = objective.evaluate([MaskedPlan(plan) for plan in candidates])
    for plan, found in zip(candidates, together, strict=True):
        expected = masked_loss(model, plan, blocks())
        assert expected.abs().max() > 1e-2
        torch.testing.assert_close(found.losses, expected, atol=1e-5, rtol=1e-5)
        (alone,) = objective.evaluate([MaskedPlan(plan)])
        torch.testing.assert_close(alone.losses, expected, atol=1e-5, rtol=1e-5)
        assert not alone.stopped


def test_the_model_is_left_as_it_was():
    model = tiny_model().train()
    before = pe.perplexity(model, blocks()).per_window
    objective = Objective(model, blocks())
    objective.evaluate([MaskedPlan(plans(model, objective.structure)[0])])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(pe.perplexity(model, blocks()).per_window, before)


def test_means_take_the_place_of_removed_channels():
    model = tiny_model()
    structure = pe.find_groups(model)
    plan = plans(model, structure)[1]
    generator = torch.Generator().manual_seed(0)
    means = {
        name: torch.randn(
            structure.by_name[name].units * structure.by_name[name].members[-1].width, generator=generator
        )
        for name in plan.keep
    }
    objective = Objective(model, blocks(), structure=structure)
    with pe.mask(model, plan, means=means):
        expected = pe.perplexity(model, blocks()).per_window - objective.dense
    mean, zero = objective.evaluate([MaskedPlan(plan, means), MaskedPlan(plan)])
    torch.testing.assert_close(mean.losses, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(zero.losses, masked_loss(model, plan, blocks()), atol=1e-5, rtol=1e-5)
    assert MaskedPlan(plan, means).digest != MaskedPlan(plan).digest


def test_entries_that_do_not_fit_are_computed_again(monkeypatch):
    model = tiny_model()
    plan = plans(model, pe.find_groups(model))[2]
    whole = Objective(model, blocks())
    assert [bool(entries) for entries in whole._entries] == [True] * 3
    monkeypatch.setattr(module, "ENTRY_BYTES", 0)
    small = Objective(model, blocks())
    assert [bool(entries) for entries in small._entries] == [True, False, False]
    torch.testing.assert_close(
        small.evaluate([MaskedPlan(plan)])[0].losses, whole.evaluate([MaskedPlan(plan)])[0].losses
    )


def test_a_stopped_candidate_leaves_the_batch():
    model = tiny_model()
    objective = Objective(model, blocks(), batch=2)
    first, second, _ = plans(model, objective.structure)
    seen = []

    def stop(candidate, block, loss):
        seen.append((candidate, block))
        return candidate == 1 and block == 2

    kept, stopped = objective.evaluate([MaskedPlan(first), MaskedPlan(second)], stop)
    assert (len(kept.losses), kept.stopped) == (7, False)
    assert (len(stopped.losses), stopped.stopped) == (4, True)
    assert [block for candidate, block in seen if candidate == 1] == [0, 1, 2, 3]
    assert [block for candidate, block in seen if candidate == 0] == list(range(7))


def test_what_cannot_be_evaluated_is_refused():
    model = tiny_model()
    structure = pe.find_groups(model)
    with pytest.raises(ValueError, match="at least one of two tokens"):
        Objective(model, Samples(torch.zeros(3, 1, dtype=torch.int64), ("a",) * 3))
    scores = pe.score(model, "magnitude_l1", structure=structure)
    ratios = pe.allocate(structure, scores, 0.3, kinds=("layers",))
    without_a_layer = pe.make_plan(structure, scores, ratios, 0.3, kinds=("layers",))
    with pytest.raises(ValueError, match="drops whole layers"):
        Objective(model, blocks()).evaluate([MaskedPlan(without_a_layer)])
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="block 0 of 7"):
        Objective(model, blocks())
