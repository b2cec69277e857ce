"""Moments of scores against the scores, and the arithmetic that brings sparsities to a mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneengine.calibration.calibrate import calibrate
from pruneengine.common.budgets import meet_mean
from pruneengine.ops import MOMENTS
from pruneengine.sparse.allocations.block_scores import collect_scores
from pruneengine.sparse.allocations.erdos_renyi import erdos_renyi
from pruneengine.sparse.allocations.whole_groups import round_to_groups
from pruneengine.sparse.matrices import Matrix, of_layers
from pruneengine.sparse.pattern import Pattern
from pruneengine.sparse.plan import make_sparse_plan
from tests.helpers.tiny import tiny_tokens
from tests.helpers.tiny_scores import MATRICES, MODEL, STATISTICS, mean_of, scores_of, uneven_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanda", [True, False])
def test_moments_are_those_of_the_scores(dtype, wanda):
    model = uneven_model(dtype)
    statistics = STATISTICS if wanda else None
    found = collect_scores(model, MATRICES, statistics, (1.0, 4.0))
    blocks = found.of_layers()
    assert found.names == tuple(matrix.name for matrix in MATRICES)
    assert blocks.layers == (0, 1, 2)
    assert found.moments.dtype == torch.float64
    assert found.above.dtype == found.histogram.dtype == torch.int64
    for row, (layer, members) in enumerate(of_layers(MATRICES).items()):
        scores = torch.cat([scores_of(matrix, statistics, model) for matrix in members])
        exact = scores.double()
        expected = {
            "count": len(exact),
            "sum": exact.sum(),
            "sum2": (exact**2).sum(),
            "log": exact[exact > 0].log().sum(),
        }
        for name, value in (expected | {"min": exact.min(), "max": exact.max()}).items():
            assert float(blocks.column(name)[row]) == pytest.approx(float(value), rel=1e-5), (layer, name)
        for place, multiple in enumerate((1.0, 4.0)):
            above = int((exact > multiple * exact.mean()).sum())
            assert abs(int(blocks.above[row, place]) - above) <= 1
        assert int(blocks.histogram[row].sum()) == blocks.sizes[row] == len(exact)


def test_the_norm_is_the_published_one():
    site = MATRICES[0].site
    squares = STATISTICS.get("squares", site).double()
    assert torch.allclose(STATISTICS.input_norm(site).double(), squares.mean(0).sqrt(), rtol=1e-6)
    with pytest.raises(ValueError, match="hold no 'squares'"):
        collect_scores(MODEL, MATRICES, calibrate(MODEL, tiny_tokens(), ("sum",)))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), count=st.integers(1, 12))
def test_any_mean_within_the_bounds_is_met(data, count):
    numbers = st.floats(-2, 2, allow_subnormal=False)
    values = [data.draw(numbers) for _ in range(count)]
    sizes = [data.draw(st.integers(1, 10**9)) for _ in range(count)]
    bounds = [tuple(sorted((data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))))) for _ in range(count)]
    share = np.array(sizes, dtype=np.float64) / sum(sizes)
    low, high = (float(np.array([pair[side] for pair in bounds]) @ share) for side in (0, 1))
    target = low + (high - low) * data.draw(st.floats(0, 1))
    found = meet_mean(values, sizes, target, bounds)
    assert abs(np.array(found) @ share - target) < 1e-12
    assert all(least <= value <= most for value, (least, most) in zip(found, bounds, strict=True))
    free = [
        number - value
        for number, value, (least, most) in zip(found, values, bounds, strict=True)
        if least + 1e-9 < number < most - 1e-9
    ]
    assert np.ptp(free) < 1e-9 if free else True
    with pytest.raises(ValueError, match="is out of reach: expected"):
        meet_mean(values, sizes, high + 1e-3, bounds)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), layers=st.integers(1, 8), m=st.integers(2, 32))
def test_whole_numbers_come_close_for_layers_of_any_size(data, layers, m):
    sizes = [data.draw(st.integers(1, 40)) for _ in range(layers)]
    matrices = [Matrix(f"m{i}", i, "", rows, 2 * m) for i, rows in enumerate(sizes)]
    wished = [data.draw(st.floats(0, (m - 1) / m)) for _ in sizes]
    target = sum(w * s for w, s in zip(wished, sizes, strict=True)) / sum(sizes)
    found = round_to_groups(matrices, {f"m{i}": w for i, w in enumerate(wished)}, target, m)
    assert all(
        round(value * m) in range(m) and abs(value - w) < (1 + 1e-6) / m
        for value, w in zip(found.values(), wished, strict=True)
    )
    assert abs(mean_of(found, matrices) - target) <= max(sizes) / sum(sizes) / m / 2 + 1e-9
    plan = make_sparse_plan("x", matrices, found, target, method="wanda", pattern=Pattern(m - 1, m))
    assert [plan.sparsity(name) for name in found] == list(found.values())
    assert plan.reached == pytest.approx(mean_of(found, matrices), abs=1e-12)
    assert plan.asked == target


def test_epsilon_is_solved_again_where_matrices_become_dense():
    shapes = {"tiny": (10, 10), "small": (20, 30), "wide": (40, 400), "square": (300, 300)}
    matrices = [Matrix(name, 0, "", *shape) for name, shape in shapes.items()]
    found = erdos_renyi(matrices, 0.7)
    # Of 106,700 weights 32,010 stay, 700 of them in the two dense matrices.
    epsilon = (32_010 - 700) / (440 + 600)
    expected = {"tiny": 0, "small": 0, "wide": 1 - epsilon * 440 / 16_000, "square": 1 - epsilon * 600 / 90_000}
    assert found == pytest.approx(expected, abs=1e-12)
    assert erdos_renyi(matrices, 0.4) == pytest.approx(dict.fromkeys(shapes, 0) | {"square": 0.4 * 106_700 / 90_000})
    assert set(erdos_renyi(matrices, 0.0).values()) == {0.0}


def test_one_weight_of_a_group_always_stays():
    # The large layer's 0.4 weights are rounded away; the small one, at its most, cannot make up for them.
    matrices = [Matrix("large", 0, "", 100, 8), Matrix("small", 1, "", 10, 8)]
    target = (0.1 * 100 + 0.75 * 10) / 110
    assert round_to_groups(matrices, {"large": 0.1, "small": 0.75}, target, 4) == {"large": 0.0, "small": 0.75}


def test_the_moments_come_by_name():
    found = collect_scores(MODEL, MATRICES, None)
    assert found.above.shape == (21, 0)
    assert torch.equal(found.column("max"), found.moments[:, MOMENTS.index("max")])
