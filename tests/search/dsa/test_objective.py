"""Fast fitness of sparsities: what a really masked model costs, without touching a weight."""

import random

import pytest
import torch

import pruneengine as pe
from pruneengine import ops
from pruneengine.data.samples import Samples
from pruneengine.model import find_groups, get_linear
from pruneengine.model.masking import masked_weights
from pruneengine.search.dsa.codes import level_of_group, levels_of, quantile_masks
from pruneengine.search.dsa.objective import SparseObjective
from pruneengine.sparse.matrices import find_matrices
from pruneengine.sparse.pattern import Pattern
from tests.helpers.tiny import VARIANTS, tiny_model, tiny_tokens

LEVELS = (0, 120, 200)


def windows(count=7, length=25):
    return Samples(tiny_tokens(count, length), ("text",) * count)


def codes_of(model, method="wanda", pattern="unstructured"):
    structure = find_groups(model)
    matrices = find_matrices(model, structure)
    statistics = pe.calibrate(model, tiny_tokens(), ("squares",), structure=structure)
    return structure, matrices, quantile_masks(model, matrices, statistics, method, Pattern.parse(pattern))


def objective_of(model, method="wanda", **options):
    structure, matrices, codes = codes_of(model, method)
    return SparseObjective(model, structure, matrices, codes, windows(), **options), matrices, codes


def really_masked(model, matrices, codes, levels):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for matrix in matrices:
            weight = get_linear(model, matrix.name).weight
            weight[codes[matrix.name] < levels[matrix.layer]] = 0
    found = pe.perplexity(model, windows()).per_window
    model.load_state_dict(state)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_losses_are_those_of_a_model_that_is_really_masked(variant, method):
    model = tiny_model(variant)
    objective, matrices, codes = objective_of(model, method, segment=8, batch=3)
    expected = really_masked(model, matrices, codes, LEVELS) - pe.perplexity(model, windows()).per_window
    assert expected.abs().max() > 1e-2
    found = objective.evaluate(LEVELS)
    per_window = torch.tensor(found.losses, dtype=torch.float64).view(7, 3).mean(1)
    torch.testing.assert_close(per_window, expected, atol=1e-5, rtol=1e-5)
    assert not found.stopped
    assert len(objective) == len(found.losses) == 21
    assert set(found.seconds) == {"masks", "forward"}


def test_segments_are_means_of_consecutive_tokens():
    model = tiny_model()
    objective, _, _ = objective_of(model, segment=12)
    tokens = windows().tokens
    with torch.no_grad():
        logits = model(tokens[:1]).logits[0, :-1]
    nll = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    torch.testing.assert_close(objective.dense[:2].float(), nll.view(2, 12).mean(1), atol=1e-5, rtol=1e-5)


def test_the_model_is_left_as_it_was_and_after_errors_too():
    model = tiny_model().train()
    objective, _, _ = objective_of(model)
    own = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    objective.evaluate(LEVELS)

    def fail(_losses):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        objective.evaluate(LEVELS, fail)
    handle = get_linear(model, "model.layers.2.mlp.up_proj").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        objective.evaluate(LEVELS)
    handle.remove()
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter is own[name][0]
        assert torch.equal(parameter, own[name][1])


def test_a_stop_is_asked_after_every_piece_but_the_last():
    objective, _, _ = objective_of(tiny_model(), segment=8, batch=3)
    seen = []
    objective.evaluate(LEVELS, lambda losses: seen.append(len(losses)) or False)
    # Pieces of 1, 1, 2 and 3 windows of three segments.
    assert seen == [3, 6, 12]
    stopped = objective.evaluate(LEVELS, lambda losses: len(losses) >= 6)
    assert stopped.stopped
    assert stopped.losses == objective.evaluate(LEVELS).losses[:6]


def test_level_zero_is_the_dense_model():
    objective, _, _ = objective_of(tiny_model())
    assert objective.evaluate((0, 0, 0)).losses == (0.0,) * len(objective)


@pytest.mark.parametrize("levels", [(1, 2), (1, 2, 257), (-1, 0, 0)])
def test_levels_that_do_not_fit_are_refused(levels):
    objective, _, _ = objective_of(tiny_model())
    with pytest.raises(ValueError, match="expected 3 from 0 to 256"):
        objective.evaluate(levels)


def test_weights_that_make_no_loss_are_refused():
    model = tiny_model()
    structure, matrices, codes = codes_of(model, "magnitude")
    with torch.no_grad():
        model.model.norm.weight[:] = float("nan")
    with pytest.raises(FloatingPointError, match="window 0 of 7"):
        SparseObjective(model, structure, matrices, codes, windows())


def test_a_buffer_that_is_too_small_changes_nothing():
    model = tiny_model()
    _, matrices, codes = codes_of(model)
    name = matrices[0].name
    own = get_linear(model, name).weight
    with pytest.raises(ValueError, match=f"holds 5 weights, expected at least {own.numel()}"):  # noqa: SIM117
        with masked_weights(model, {name: codes[name]}, 8, torch.empty(5)):
            pass
    assert get_linear(model, name).weight is own


def test_wandas_codes_hold_its_masks():
    model = tiny_model()
    structure, matrices, codes = codes_of(model)
    statistics = pe.calibrate(model, tiny_tokens(), ("squares",), structure=structure)
    for matrix in matrices[:4]:
        scores = get_linear(model, matrix.name).weight.detach().abs() * statistics.mean("squares", matrix.site).sqrt()
        count = -(-128 * matrix.columns // 256)
        kept = scores.topk(matrix.columns - count, dim=1).indices
        mask = torch.ones_like(scores, dtype=torch.bool).scatter_(1, kept, False)
        assert torch.equal(codes[matrix.name] < 128, mask)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 6)])
def test_codes_of_a_pattern_hold_its_masks(n, m):
    model = tiny_model()
    _, matrices, codes = codes_of(model, "magnitude", f"{n}:{m}")
    level = level_of_group((m - n) / m, m)
    for matrix in matrices:
        weight = get_linear(model, matrix.name).weight.detach()
        assert torch.equal(codes[matrix.name] < level, ops.nm_mask(weight.abs(), n, m))


def test_levels_keep_the_mean():
    levels = levels_of([0.7] * 30, [1000] * 30)
    assert sum(levels) == round(0.7 * 256 * 30)
    assert max(levels) - min(levels) == 1
    assert levels_of([0.5, 0.25, 0.0, 0.999], [7] * 4) == (128, 64, 0, 255)


def test_levels_of_layers_of_equal_size_are_the_largest_remainders():
    draw = random.Random(0)
    for _ in range(300):
        count, size = draw.randint(1, 40), draw.randint(1, 10**9)
        exact = [draw.random() * 255 for _ in range(count)]
        expected = [int(level) for level in exact]
        missing = round(sum(exact) - sum(expected))
        for place in sorted(range(count), key=lambda p: expected[p] - exact[p])[:missing]:
            expected[place] += 1
        assert levels_of([level / 256 for level in exact], [size] * count) == tuple(expected)


def test_levels_of_layers_of_other_sizes_keep_the_mean_over_weights():
    draw = random.Random(0)
    for _ in range(300):
        sizes = [draw.choice((60, 1000, 5000)) for _ in range(draw.randint(2, 40))]
        sparsities = [draw.random() * 0.99 for _ in sizes]
        levels = levels_of(sparsities, sizes)
        assert all(0 <= level - int(sparsity * 256) <= 1 for level, sparsity in zip(levels, sparsities, strict=True))
        removed = sum(level * size for level, size in zip(levels, sizes, strict=True)) / 256
        wanted = sum(sparsity * size for sparsity, size in zip(sparsities, sizes, strict=True))
        assert abs(removed - wanted) <= max(sizes) / 2 / 256 * (1 + 1e-9)
    # Of equal size, one of either pair would be raised.
    assert levels_of([0.5 + 0.6 / 256, 0.5 + 0.55 / 256], [10, 1000]) == (129, 129)
    assert levels_of([0.5 + 0.4 / 256, 0.5 + 0.6 / 256], [1000, 10]) == (128, 129)
