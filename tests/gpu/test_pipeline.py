"""The whole path on a GPU gives what it gives on the CPU."""

import pytest
import torch

from pruneengine import PruneConfig, calibrate, compensate, mask, perplexity, prune
from pruneengine.calibration.statistics import QUANTITIES
from pruneengine.data.samples import Samples
from pruneengine.model import find_groups
from pruneengine.search.adapruner.objective import MaskedPlan, Objective
from pruneengine.structured.prune import decide
from tests.helpers.tiny import VARIANTS, logits, tiny_model, tiny_tokens

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_equal_those_of_the_cpu(variant):
    tokens = tiny_tokens(5)
    expected = calibrate(tiny_model(variant), tokens, QUANTITIES, batch_size=2)
    found = calibrate(tiny_model(variant).cuda(), tokens, QUANTITIES, batch_size=2)
    for quantity, named in expected.tensors.items():
        for name, tensor in named.items():
            scale = float(tensor.abs().max())
            torch.testing.assert_close(found.tensors[quantity][name], tensor, rtol=5e-3, atol=2e-4 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_and_compacted_logits_agree(variant, dtype):
    model, tokens = tiny_model(variant, dtype=dtype).cuda(), tiny_tokens(3).cuda()
    config = PruneConfig(method="magnitude_l1", ratio=0.4, shape="per-layer", allocation="global")
    with mask(model, decide(model, find_groups(model), None, config).plan):
        masked = logits(model, tokens).float()
    prune(model, None, config)
    tolerance = 1e-3 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(logits(model, tokens).float(), masked, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_search_objective_equals_the_masked_model(variant, together):
    model, blocks = tiny_model(variant).cuda(), Samples(tiny_tokens(7, 20), ("text",) * 7)
    structure = find_groups(model)
    configs = [PruneConfig(method="magnitude_l1", ratio=ratio, round_to=1) for ratio in (0.3, 0.6)]
    plans = [decide(model, structure, None, config).plan for config in configs]
    objective = Objective(model, blocks, structure=structure)
    candidates = [MaskedPlan(plan) for plan in plans]
    found = objective.evaluate(candidates) if together else [objective.evaluate([each])[0] for each in candidates]
    for plan, evaluation in zip(plans, found, strict=True):
        with mask(model, plan):
            expected = perplexity(model, blocks).per_window - objective.dense
        torch.testing.assert_close(evaluation.losses, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["bias", "least-squares"])
def test_compensation_equals_that_of_the_cpu(how):
    tokens, config = tiny_tokens(8), PruneConfig(method="magnitude_l1", ratio=0.4, round_to=1)
    model = tiny_model()
    plan = decide(model, find_groups(model), None, config).plan
    expected = compensate(model, plan, tokens, how).corrections
    found = compensate(model.cuda(), plan, tokens, how).corrections
    assert found.keys() == expected.keys()
    for module, correction in expected.items():
        for part in ("weight", "bias"):
            wanted, other = getattr(correction, part), getattr(found[module], part)
            assert (wanted is None) == (other is None)
            if wanted is not None:
                torch.testing.assert_close(other, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


def test_a_search_runs_on_the_gpu():
    pytest.importorskip("optuna")
    from pruneengine import AdaPrunerConfig, SearchTexts, search

    model = tiny_model().cuda()
    config = AdaPrunerConfig(
        ratio=0.4, shape="per-layer", trials=6, pool=8, counts=(4,), lengths=(16,), seqlen=20, windows=4, held_out=2,
        round_to=1, together=2,
    )  # fmt: skip
    pool, blocks, held_out = (
        Samples(tiny_tokens(n, length, n), ("text",) * n) for n, length in ((8, 16), (4, 20), (2, 20))
    )
    found = search(model, SearchTexts({16: pool}, blocks, held_out), config)
    assert found.winner.value <= min(baseline.value for baseline in found.baselines if baseline.losses)
    with mask(model, found.plan, corrections=found.corrections):
        loss = perplexity(model, held_out).nll
    assert loss - found.dense["held out"] == pytest.approx(found.winner.compensated, abs=1e-3)
