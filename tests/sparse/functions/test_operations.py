"""Every operation of the allocation functions in both readings, against torch's own on one vector."""

import itertools
import math

import numpy as np
import pytest
import torch

from pruneengine.sparse.functions.names import NOT_IN_CODE, POST, PRE, REDUCE
from pruneengine.sparse.functions.operations import (
    COMPAT_POST,
    COMPAT_PRE,
    LIMIT,
    SAFE_POST,
    SAFE_PRE,
    apply_post,
    apply_pre,
    as_published,
)
from pruneengine.sparse.functions.reductions import COMPAT_REDUCE, SAFE_REDUCE, apply_reduce
from tests.helpers.published_functions import PUBLISHED_POST, PUBLISHED_PRE, PUBLISHED_REDUCE, entropy

SCORES = torch.tensor([0.0, 0.0, 0.3, 1.0, 1.7, 2.5, 8.0], dtype=torch.float64)
SIGNED = torch.tensor([-2.0, -0.4, 0.0, 0.7, 3.0], dtype=torch.float64)

SAFE_ONLY_PRE = {
    "log": lambda x: x.where(x > 0, torch.ones_like(x)).log(),
    "minmax": lambda x: (x - x.min()) / (x.max() - x.min()),
    "sqrt": lambda x: x.abs().sqrt(),
    "softmax": lambda x: x.softmax(0),
}


def one_block(x):
    return x.double().numpy()[None], np.ones((1, len(x)))


@pytest.mark.parametrize("name", PRE)
@pytest.mark.parametrize("scores", [SCORES, SIGNED])
def test_safe_pre_operations(name, scores):
    expected = (PUBLISHED_PRE | SAFE_ONLY_PRE)[name](scores)
    np.testing.assert_allclose(apply_pre(name, *one_block(scores), False)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", COMPAT_PRE)
@pytest.mark.parametrize("scores", [SCORES, SIGNED, torch.full((3,), 2.0), torch.tensor([1.0, 100.0])])
def test_compat_pre_operations(name, scores):
    expected = PUBLISHED_PRE[name](scores.float())
    np.testing.assert_allclose(apply_pre(name, *one_block(scores), True)[0], expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", REDUCE)
@pytest.mark.parametrize("compat", [False, True])
def test_reductions(name, compat):
    scores = SCORES[2:]
    expected = PUBLISHED_REDUCE[name](scores)
    np.testing.assert_allclose(apply_reduce(name, *one_block(scores), compat), expected, rtol=2e-7)


def test_reductions_count_by_weight():
    x, w = np.array([[1.0, 2.0, 5.0, 9.0]]), np.array([[2.0, 1.0, 3.0, 0.0]])
    repeated = one_block(torch.tensor([1.0, 1.0, 2.0, 5.0, 5.0, 5.0]))
    for name, compat in itertools.product(REDUCE, [False, True]):
        np.testing.assert_allclose(apply_reduce(name, x, w, compat), apply_reduce(name, *repeated, compat), rtol=1e-7)


def test_reductions_at_their_corners():
    zeros, tiny = one_block(torch.zeros(4)), one_block(torch.full((500,), 1e-3))
    assert apply_reduce("geometric", *zeros, False) == 0
    assert apply_reduce("entropy", *zeros, False) == 0
    assert math.isnan(apply_reduce("entropy", *zeros, True)[0])
    # The product underflows in float32, as it does for the authors; its logarithm does not.
    assert apply_reduce("geometric", *tiny, True) == PUBLISHED_REDUCE["geometric"](torch.full((500,), 1e-3)) == 0
    assert apply_reduce("geometric", *tiny, False) == pytest.approx(1e-3)
    single = one_block(torch.tensor([3.0]))
    assert math.isnan(apply_reduce("var", *single, True)[0])
    assert apply_reduce("var", *single, False) == 0
    # Negative numbers: left out of the entropy, by magnitude in the geometric mean.
    assert apply_reduce("entropy", *one_block(SIGNED), False) == pytest.approx(float(entropy(SIGNED)))
    assert apply_reduce("geometric", *one_block(SIGNED), False) == pytest.approx((2 * 0.4 * 0.7 * 3) ** 0.25)


def test_published_entropy_is_bent_where_float32_cannot_tell():
    many = torch.ones(20_000_000)
    said = float(torch.distributions.Categorical(probs=many / many.sum(), validate_args=False).entropy())
    read = apply_reduce("entropy", np.ones((1, 1)), np.full((1, 1), 2e7), True)
    assert read[0] == pytest.approx(said, rel=1e-4)
    assert read[0] < 0.96 * math.log(2e7)


@pytest.mark.parametrize("name", POST)
def test_safe_transforms(name):
    v = np.array([-3.0, -0.5, 0.0, 0.2, 0.9, 1.4, 30.0])
    said = apply_post(name, v, False)
    natural = PUBLISHED_POST[name](torch.from_numpy(v)).numpy()
    inside = np.isfinite(natural)
    np.testing.assert_allclose(said[inside], natural[inside], rtol=1e-12, atol=1e-12)
    assert np.isfinite(said).all()


def test_safe_transforms_outside_of_their_domain():
    v = np.array([-2.0, 0.0, 2.0, 1e99])
    np.testing.assert_allclose(apply_post("asin", v, False), [-math.pi / 2, 0, math.pi / 2, math.pi / 2])
    np.testing.assert_allclose(apply_post("acos", v, False), [math.pi, math.pi / 2, 0, 0])
    np.testing.assert_allclose(apply_post("sqrt", v, False), np.sqrt(np.abs(v)))
    np.testing.assert_allclose(
        apply_post("log", v, False), [math.log(2), -100 * math.log(10), math.log(2), math.log(1e99)]
    )
    np.testing.assert_allclose(apply_post("exp", v, False), [math.exp(-2), 1, math.exp(2), math.exp(100)])
    np.testing.assert_allclose(apply_post("square", v, False), [4, 0, 4, LIMIT])


@pytest.mark.parametrize("name", COMPAT_POST)
def test_compat_transforms(name):
    v = torch.tensor([-3.0, -0.5, 0.0, 0.2, 0.9, 1.4, 30.0, 100.0, math.inf])
    expected = PUBLISHED_POST[name](v)
    np.testing.assert_allclose(apply_post(name, v.double().numpy(), True), expected, rtol=2e-6, atol=2e-7)


def test_last_published_rule():
    assert as_published(np.array([math.nan, math.inf, -math.inf, 2.0])).tolist() == [0, -1, -1, 2]


def test_every_name_has_its_operations():
    assert set(SAFE_PRE) == set(PRE)
    assert set(SAFE_POST) == set(POST)
    assert set(SAFE_REDUCE) == set(COMPAT_REDUCE) == set(REDUCE)
    assert set(COMPAT_PRE) == set(PRE) - set(NOT_IN_CODE["pre"])
    assert set(COMPAT_POST) == set(POST) - set(NOT_IN_CODE["post"])
