"""Sparse pruning and the search for allocation functions give on a GPU what they give on the CPU."""

import pytest
import torch
from torch import nn

import pruneengine as pe
from pruneengine.data.samples import Samples
from pruneengine.search.dsa.codes import quantile_masks
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.objective import SparseObjective
from pruneengine.sparse.allocations.allocate import allocate_sparsities
from pruneengine.sparse.allocations.block_scores import collect_scores
from pruneengine.sparse.matrices import find_matrices
from pruneengine.sparse.pattern import Pattern
from tests.helpers.tiny import VARIANTS, logits, tiny_model, tiny_tokens
from tests.helpers.tiny_scores import uneven_model

pytestmark = pytest.mark.gpu
MODES = ("sequential", "two-pass", "one-shot")
DEVICES = ("cpu", "cuda")
TOKENS = tiny_tokens(8, 16)
# A tie that rounding breaks the other way changes what enters every linear behind it, and with that a few more.
SWAPPED = 5e-3


def pruned(model, **options):
    """Return the linears of the pruned model, on the CPU, and the report."""
    report = pe.sparsify(model, TOKENS, pe.SparseConfig(**({"sparsity": 0.5, "block": 24} | options)))
    named = ((path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in path)
    return {path: linear.weight.detach().cpu() for path, linear in named}, report


def both(variant="llama-gqa-tied", **options):
    """Return the pruned linears of the CPU and of the GPU, with as many zeros each."""
    (expected, report), (found, other) = (pruned(tiny_model(variant).to(device), **options) for device in DEVICES)
    assert other.plan == report.plan
    for path, weight in expected.items():
        assert int((found[path] == 0).sum()) == int((weight == 0).sum()) == report.plan.removed[path]
    return expected, found


def share(different):
    """Return the share of True in all of some bool tensors."""
    return sum(int(d.sum()) for d in different) / sum(d.numel() for d in different)


def masks_differ(expected, found):
    return share([(found[path] == 0) != (weight == 0) for path, weight in expected.items()])


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_wanda_removes_the_same_weights(variant, mode, pattern):
    sparsity = None if pattern == "2:4" else 0.5
    expected, found = both(variant, method="wanda", mode=mode, pattern=pattern, sparsity=sparsity)
    assert masks_differ(expected, found) < SWAPPED
    for path, weight in expected.items():
        kept = (weight != 0) & (found[path] != 0)
        assert torch.equal(found[path][kept], weight[kept])


@pytest.mark.parametrize("compare", ["row", "matrix", "layer"])
def test_magnitude_removes_the_very_same_weights(compare):
    expected, found = both(method="magnitude", compare=compare)
    assert all(torch.equal(found[path], weight) for path, weight in expected.items())


@pytest.mark.parametrize(
    "options", [{"pattern": "2:4", "sparsity": None}, {"sparsity": 0.37}, {"sparsity": 0.0}], ids=str
)
def test_magnitude_in_groups_and_in_odd_numbers(options):
    expected, found = both(method="magnitude", **options)
    assert all(torch.equal(found[path], weight) for path, weight in expected.items())


def test_wanda_over_whole_layers():
    expected, found = both(method="wanda", compare="layer", mode="one-shot")
    assert masks_differ(expected, found) < SWAPPED


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("mode", MODES)
def test_sparsegpt_comes_close(mode, pattern):
    sparsity = None if pattern == "2:4" else 0.5
    expected, found = both(method="sparsegpt", mode=mode, pattern=pattern, sparsity=sparsity)
    assert masks_differ(expected, found) < SWAPPED
    # Where another weight goes, those behind it in the row make up for another error.
    off = [(found[path] - weight).abs() > 1e-2 * weight.abs().max() for path, weight in expected.items()]
    assert share(off) < 2e-2


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_half_precision(method):
    model = tiny_model(dtype=torch.bfloat16).cuda()
    weights, report = pruned(model, method=method, pattern="2:4", sparsity=None)
    assert report.plan.reached == 0.5
    for weight in weights.values():
        assert weight.dtype == torch.bfloat16
        assert bool(((weight.unflatten(1, (-1, 4)) == 0).sum(2) == 2).all())
    assert bool(logits(model, TOKENS.cuda()).isfinite().all())


def test_scores_are_those_of_the_cpu():
    model = uneven_model()
    matrices, statistics = find_matrices(model, pe.find_groups(model)), pe.calibrate(model, TOKENS, ("squares",))
    expected = collect_scores(model, matrices, statistics, (2.0, 5.0))
    found = collect_scores(model.cuda(), matrices, statistics, (2.0, 5.0))
    assert {tensor.device.type for tensor in (found.moments, found.above, found.histogram)} == {"cpu"}
    torch.testing.assert_close(found.moments, expected.moments, rtol=1e-5, atol=1e-3)
    assert torch.equal(found.histogram, expected.histogram)
    # The thresholds are multiples of a mean that was summed in another order.
    assert int((found.above - expected.above).abs().max()) <= 1


@pytest.mark.parametrize("allocation", ["global", "er-plus", "owl", "dsa", "abs | std | no | λ=0.1"])
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_allocations_are_those_of_the_cpu(method, allocation):
    model = uneven_model()
    matrices, statistics = find_matrices(model, pe.find_groups(model)), pe.calibrate(model, TOKENS, ("squares",))
    config = pe.SparseConfig(method, 0.5, allocation=allocation)
    expected = allocate_sparsities(model, matrices, config, statistics)
    found = allocate_sparsities(model.cuda(), matrices, config, statistics)
    assert found.sparsities == pytest.approx(expected.sparsities, abs=1e-3)
    assert (found.words, found.warnings) == (expected.words, expected.warnings)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_the_fast_objective_equals_that_of_the_cpu(method, pattern):
    windows = Samples(tiny_tokens(5, 24, seed=4), ("text",) * 5)
    levels = (128, 0, 64) if pattern == "2:4" else (140, 0, 99)
    found = {}
    for device in DEVICES:
        model = tiny_model().to(device)
        structure = pe.find_groups(model)
        matrices = find_matrices(model, structure)
        statistics = pe.calibrate(model, TOKENS, ("squares",), structure=structure)
        codes = quantile_masks(model, matrices, statistics, method, Pattern.parse(pattern))
        objective = SparseObjective(model, structure, matrices, codes, windows, segment=8)
        before = logits(model, TOKENS.to(device))
        found[device] = objective.dense, torch.tensor(objective.evaluate(levels).losses), codes
        assert torch.equal(logits(model, TOKENS.to(device)), before)
    (dense, losses, codes), (other_dense, other_losses, other_codes) = found["cpu"], found["cuda"]
    assert other_dense.device.type == "cpu"
    assert {code.device.type for code in other_codes.values()} == {"cuda"}
    assert share([other_codes[path].cpu() != code for path, code in codes.items()]) < SWAPPED
    torch.testing.assert_close(other_dense, dense, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other_losses, losses, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_a_search_for_a_function_runs_on_the_gpu(pruner):
    pytest.importorskip("optuna")
    pytest.importorskip("scipy")
    pool, search, held_out = (
        Samples(tiny_tokens(count, length, seed), ("text",) * count)
        for seed, (count, length) in enumerate(((4, 16), (6, 24), (2, 24)), 1)
    )
    config = DsaConfig(
        sparsity=0.5, pruner=pruner, trials=8, population=4, seqlen=24, windows=8, held_out=0.25, segment=8,
        nsamples=4, calibration_seqlen=16, finalists=2, correlate=0,
    )  # fmt: skip
    model = tiny_model().cuda()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = pe.search(model, pe.SearchTexts({16: pool}, search, held_out), config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert result.counts["drawn"] == 8
    assert result.plan.reached == pytest.approx(0.5, abs=1e-4)
    pe.sparsify(model, pool, config.sparse_config, plan=result.plan)
    loss = pe.perplexity(model, held_out).nll - result.dense["held out"]
    assert loss == pytest.approx(result.winner.held_out, abs=1e-3)
