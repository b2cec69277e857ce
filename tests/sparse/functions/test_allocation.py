"""From the numbers of blocks to their sparsity."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pruneengine.sparse.functions.allocation import allocation_of, canonical_levels, position

blocks = arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6))
sparsities = st.floats(0, 0.99)
spreads = st.floats(0.001, 0.5)
signs = st.sampled_from([1, -1])


@given(blocks, sparsities, spreads, signs, st.data())
def test_mean_is_exact_and_bounds_hold(values, sparsity, spread, sign, data):
    counts = st.lists(st.integers(1, 10**9), min_size=values.size, max_size=values.size)
    weights = np.array(data.draw(st.none() | counts) or np.ones(values.size))
    found = allocation_of(values, sparsity, spread, sign, weights=weights)
    assert found.min() >= 0
    assert found.max() <= 0.99
    assert found @ weights / weights.sum() == pytest.approx(sparsity, abs=1e-12)


@given(blocks, st.floats(0.35, 0.65), st.floats(0.01, 0.17), signs)
def test_within_the_bounds_it_is_the_formula(values, sparsity, spread, sign):
    found = allocation_of(values, sparsity, spread, sign)
    if position(values) is not None:
        m = (values - values.min()) / (values.max() - values.min())
        np.testing.assert_allclose(found, sparsity + sign * 2 * spread * (m - m.mean()), atol=1e-12)
        assert np.ptp(found) == pytest.approx(2 * spread)


@given(arrays.arrays(np.float64, 8, elements=st.integers(-100, 100)), st.integers(1, 1000), st.integers(-1000, 1000))
@example(np.array([-49.0, -67, 93, 93, 93, 93, 93, 93]), 1, 0)  # 112.5 thousandths
def test_scale_and_offset_change_nothing(values, scale, offset):
    one = allocation_of(values, 0.6, 0.08)
    other = allocation_of(values * scale + offset, 0.6, 0.08)
    np.testing.assert_allclose(one, other, atol=1e-12)
    mirrored = allocation_of(-values, 0.6, 0.08, -1)
    np.testing.assert_allclose(one, mirrored, atol=1e-12)
    assert canonical_levels(values) == canonical_levels(-values, -1)


def test_more_is_sparser_or_denser_by_the_sign():
    np.testing.assert_allclose(allocation_of([0, 1, 2], 0.5, 0.1), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(allocation_of([0, 1, 2], 0.5, 0.1, -1), [0.6, 0.5, 0.4])


def test_what_a_bound_cuts_off_goes_to_the_others():
    found = allocation_of([0, 0, 0, 1], 0.9, 0.2)
    np.testing.assert_allclose(found, [0.87, 0.87, 0.87, 0.99])
    found = allocation_of([0, 1, 1, 1], 0.1, 0.2)
    np.testing.assert_allclose(found, [0, 0.4 / 3, 0.4 / 3, 0.4 / 3])
    heavy = allocation_of([0, 0, 1], 0.9, 0.2, weights=[1, 1, 2])
    np.testing.assert_allclose(heavy, [0.81, 0.81, 0.99])


def test_equal_values_are_uniform():
    found = allocation_of([3.0] * 5, 0.7, 0.08)
    assert found.tolist() == [0.7] * 5


def test_allocations_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        allocation_of([1, 2], 0.5, 0.1)[0] = 1


def test_canonical_keys():
    assert canonical_levels([0, 1, 4]) == (0, 250, 1000)
    assert canonical_levels([0, 1, 4], -1) == (1000, 750, 0)
    assert canonical_levels([10, 12.0001, 18]) == canonical_levels([0, 1, 4])
    assert canonical_levels([0, 1.01, 4]) != canonical_levels([0, 1, 4])
    assert canonical_levels([2, 2]) == ()


@given(arrays.arrays(np.float64, 6, elements=st.floats(0, 1)), arrays.arrays(np.float64, 6, elements=st.floats(0, 1)))
def test_equal_keys_are_near(values, others):
    if canonical_levels(values) == canonical_levels(others) != ():
        assert np.abs(position(values) - position(others)).max() < 1.001e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, float("nan")], 0.5, 0.1), "finite number a block"),
        (([], 0.5, 0.1), "finite number a block"),
        (([[1, 2]], 0.5, 0.1), "finite number a block"),
        (([1, 2], 1.0, 0.1), r"\[0, 0.99\]"),
        (([1, 2], -0.1, 0.1), r"\[0, 0.99\]"),
        (([1, 2], 0.5, 0.0), r"\(0, 0.5\]"),
        (([1, 2], 0.5, 0.6), r"\(0, 0.5\]"),
        (([1, 2], 0.5, 0.1, 0), "sign"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        allocation_of(*arguments)


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, float("inf")]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="2 positive numbers"):
        allocation_of([1, 2], 0.5, 0.1, weights=weights)
