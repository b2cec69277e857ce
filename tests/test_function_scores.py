"""What allocation functions say of blocks: every operation, the cached statistics, and the allocations."""

import itertools
import math
import random
import time

import numpy as np
import pytest
import torch

from pruneengine.sparse.distribution import ScoreDistribution, tells_apart
from pruneengine.sparse.functions import PUBLISHED, Function
from pruneengine.sparse.genome import random_function
from pruneengine.sparse.grammar import parse
from pruneengine.sparse.names import NOT_IN_CODE, POST, PRE, REDUCE
from pruneengine.sparse.operations import (
    COMPAT_POST,
    COMPAT_PRE,
    LIMIT,
    SAFE_POST,
    SAFE_PRE,
    apply_post,
    apply_pre,
    as_published,
)
from pruneengine.sparse.reductions import COMPAT_REDUCE, SAFE_REDUCE, apply_reduce

SCORES = torch.tensor([0.0, 0.0, 0.3, 1.0, 1.7, 2.5, 8.0], dtype=torch.float64)
SIGNED = torch.tensor([-2.0, -0.4, 0.0, 0.7, 3.0], dtype=torch.float64)

# The authors' operations on one vector, from their description, with torch's own functions.
PUBLISHED_PRE = {
    "no": lambda x: x,
    "abs": torch.abs,
    "log": lambda x: torch.log(x.where(x > 0, torch.ones_like(x)) + 1e-6),
    "abslog": lambda x: x.where(x != 0, torch.ones_like(x)).abs().log(),
    "square": torch.square,
    "exp": torch.exp,
    "normalize": lambda x: ((x - x.mean()) / x.std()).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "minmax": lambda x: (x - x.min()) / (x.max() - x.min() + 1e-9),
}
SAFE_ONLY_PRE = {
    "log": lambda x: x.where(x > 0, torch.ones_like(x)).log(),
    "minmax": lambda x: (x - x.min()) / (x.max() - x.min()),
    "sqrt": lambda x: x.abs().sqrt(),
    "softmax": lambda x: x.softmax(0),
}


def entropy(x):
    p = x[x >= 0]
    return torch.distributions.Categorical(probs=p / p.sum(), validate_args=False).entropy()


PUBLISHED_REDUCE = {
    "no": torch.mean,
    "mean": torch.mean,
    "var": torch.var,
    "std": torch.std,
    "l1": lambda x: x.abs().mean(),
    "frobenius": lambda x: torch.linalg.vector_norm(x),
    "geometric": lambda x: x.prod().pow(1 / x.numel()),
    "entropy": entropy,
}
PUBLISHED_POST = {
    **{name: getattr(torch, name) for name in POST if name not in ("no", "softplus")},
    "no": lambda v: v,
    "softplus": torch.nn.functional.softplus,
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


def matrices(kind, scale, seed, rows=200):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 200, generator=generator) * scale
    norm = torch.randn(200, generator=generator).mul(0.7).exp() * 2
    if kind == "lognormal":
        return torch.randn(rows, 200, generator=generator).mul(0.8).sub(1).exp() * scale, None
    if kind == "bfloat16":
        return weight.bfloat16(), None
    if kind == "bfloat16 norm":
        return weight.bfloat16(), norm
    if kind == "zeros":
        return weight * (torch.rand(rows, 200, generator=generator) > 0.1), norm
    return weight, norm


KINDS = ("norm", "lognormal", "bfloat16", "bfloat16 norm", "zeros")


@pytest.fixture(scope="module")
def blocks():
    cases = itertools.product((0.02, 0.3), KINDS)
    return [[matrices(kind, scale, seed)] for seed, (scale, kind) in enumerate(cases)]


def scores_of(block):
    vectors = [weight.float().abs() * (1.0 if norm is None else norm) for weight, norm in block]
    return torch.cat([vector.flatten() for vector in vectors])


@pytest.fixture(scope="module")
def distribution(blocks):
    return ScoreDistribution.measure(blocks)


EXACT = [
    *itertools.product([(), ("abs",), ("square",)], ["mean", "var", "std", "l1", "frobenius", "geometric", "entropy"]),
    *itertools.product([("log",), ("abslog",), ("abs", "log")], ["mean", "var", "std", "frobenius"]),
]


@pytest.mark.parametrize(("pre", "reduce"), EXACT)
def test_moments_answer_exactly(distribution, blocks, pre, reduce):
    expected = whole(blocks, pre, reduce)
    np.testing.assert_allclose(distribution.reduced(pre, reduce), expected, rtol=1e-6)


def whole(blocks, pre, reduce):
    return np.array([apply_reduce(reduce, *chain, False)[0] for chain in chains_of(blocks, pre)])


def chains_of(blocks, pre):
    for block in blocks:
        x, w = one_block(scores_of(block))
        for name in pre:
            x = apply_pre(name, x, w, False)
        yield x, w


def errors(distribution, blocks, chains, reductions=tuple(name for name in REDUCE if name != "no")):
    """The largest error over blocks, relative to the number, or for a mean to the mean magnitude."""
    found = {}
    for pre in chains:
        vectors = list(chains_of(blocks, pre))
        for reduce in reductions:
            expected = np.array([apply_reduce(reduce, *vector, False)[0] for vector in vectors])
            scale = np.array([np.abs(x).mean() for x, _ in vectors]) if reduce == "mean" else np.abs(expected)
            got = distribution.reduced(pre, reduce)
            found[pre, reduce] = float((np.abs(got - expected) / np.where(scale > 0, scale, 1.0)).max())
    return found


def test_one_operation_is_good_to_a_thousandth(distribution, blocks):
    chains = [(name,) for name in ("sigmoid", "tanh", "minmax", "sqrt", "square")]
    found = errors(distribution, blocks, chains)
    assert max(found.values()) < 1e-3, max(found, key=found.get)


def test_all_chains_are_good_to_a_ten_thousandth_as_a_rule_and_a_percent_nearly_always(distribution, blocks):
    chains = [pre for pre in itertools.product(PRE, repeat=2) if not set(pre) & {"exp", "softmax"}]
    one_of_each = ScoreDistribution.measure(blocks[5:])
    found = np.array(list(errors(one_of_each, blocks[5:], chains).values()))
    assert np.median(found) < 2e-4
    assert np.quantile(found, 0.9) < 1e-2


def test_exponentials_are_as_good_as_the_few_greatest_scores_allow(distribution, blocks):
    found = errors(
        distribution, blocks, [("exp",), ("softmax",), ("sigmoid", "exp")], ("mean", "var", "std", "geometric")
    )
    assert np.median(list(found.values())) < 5e-3
    assert max(found.values()) < 0.05


def test_allocations_from_bins_are_those_of_all_scores(distribution, blocks):
    rng = random.Random(5)
    distances = []
    while len(distances) < 60:
        function = random_function(rng)
        if distribution.is_valid(function):
            expected = whole(blocks, function.pre, function.reduce)
            for name in (function.transform, function.post):
                expected = apply_post(name, expected, False)
            got = distribution.values(function)
            distances.append(np.abs(position(got) - position(expected)).max())
    assert np.median(distances) < 1e-4
    assert np.mean(np.array(distances) < 1e-2) > 0.9


def position(v):
    return (v - v.min()) / np.ptp(v)


def published(x, function):
    """The authors' computation on one vector, literally: float32 throughout, then their last rule."""
    for name in function.pre:
        x = PUBLISHED_PRE[name](x)
    x = x if function.reduce == "no" else PUBLISHED_REDUCE[function.reduce](x)
    for name in (function.transform, function.post):
        x = PUBLISHED_POST[name](x)
    value = float(x.mean())
    return 0.0 if math.isnan(value) else -1.0 if math.isinf(value) else value


def test_released_function_is_that_of_the_authors(distribution, blocks):
    expected = []
    for block in blocks:
        x = scores_of(block)
        x[x == 0] = 1
        expected.append(torch.asin(torch.atan(torch.log(torch.abs(x)).var())).nan_to_num(nan=0.0).item())
    np.testing.assert_allclose(distribution.values(PUBLISHED), expected, rtol=1e-4)
    assert 0.0 in expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize(
    "text",
    [
        "W:(ABS)-(VAR)-(9)",
        "W:(NO_OP)-(MEAN)-(TAN,SOFTPLUS)-(8)",
        "W:(LOG)-(STD)-(ACOS)-(7)",
        "W:(ABSLOG,SIGMOID)-(L1_NORM)-(LOG,ABS)-(7)",
        "W:(POW,TANH)-(FROBENIUS_NORM)-(SOFTPLUS,ATAN)-(7)",
        "W:(MMS,EXP)-(VAR)-(ATAN)-(7)",
        "W:(NORMALIZE,SIGMOID)-(MEAN)-(LOG,ASIN)-(7)",
        "W:(TANH)-(ENTROPY)-(EXP)-(7)",
        "W:(NO_OP)-(GEOMETRIC_MEAN)-(NO_OP)-(7)",
        "W:(ABS)-(FROBENIUS_NORM)-(EXP,EXP)-(7)",
        "W:(SIGMOID)-(NO_OP)-(SIN,TANH)-(7)",
    ],
)
def test_published_functions_are_those_of_the_authors(distribution, blocks, text):
    function = parse(text)
    expected = [published(scores_of(block), function) for block in blocks]
    np.testing.assert_allclose(distribution.values(function), expected, rtol=2e-3, atol=1e-6)


def test_any_function_is_finite(distribution):
    rng = random.Random(0)
    for _ in range(3000):
        function = random_function(rng)
        assert np.isfinite(distribution.values(function)).all(), function
    for _ in range(300):
        drawn = random_function(rng)
        if drawn.reduce != "geometric":
            each = Function(drawn.pre, "no", drawn.transform, drawn.post)
            assert np.isfinite(distribution.values(each)).all(), each


def test_blocks_of_nothing_but_zeros_or_one_value_are_finite():
    flat = [torch.zeros(4, 4)], [torch.ones(3, 5)], [torch.full((2, 8), 1e30)], [torch.full((2, 8), 1e-30)]
    distribution = ScoreDistribution.measure([[(weight[0], None)] for weight in flat])
    rng = random.Random(1)
    for _ in range(1000):
        function = random_function(rng)
        assert np.isfinite(distribution.values(function)).all(), function
    assert distribution.reduced(("sqrt",), "mean") == pytest.approx([0, 1, 1e15, 1e-15], rel=0.05)


def test_constant_functions_are_not_valid(distribution):
    for text in ("normalize | var", "normalize | mean | sin", "normalize | std | log, atan", "sigmoid | mean | no, no"):
        assert distribution.is_valid(parse(text)) == text.startswith("sigmoid")
    assert not distribution.is_valid(parse("exp | frobenius | sigmoid"))
    assert not distribution.is_valid(parse("W:(NO_OP)-(GEOMETRIC_MEAN)-(NO_OP)-(7)"))


def test_tells_apart():
    assert tells_apart(np.array([1.0, 1.001]))
    assert not tells_apart(np.array([1.0, 1.0 + 1e-9]))
    assert not tells_apart(np.array([0.0, 0.0]))
    assert not tells_apart(np.array([0.0, math.nan]))


def test_matrices_of_a_block_add_up():
    parts = [matrices("norm", 0.1, seed, rows) for seed, rows in ((1, 30), (2, 50))]
    both = ScoreDistribution.measure([parts, parts[:1]])
    joined = torch.cat([scores_of([part]) for part in parts])
    assert both.counts.tolist() == [16000, 6000]
    assert both.reduced((), "var")[0] == pytest.approx(float(joined.double().var()), rel=1e-6)
    np.testing.assert_allclose(both.reduced(("minmax",), "mean")[0], PUBLISHED_PRE["minmax"](joined).mean(), rtol=1e-3)


@pytest.mark.parametrize(
    ("moments", "histogram", "message"),
    [
        (torch.ones(2, 11), torch.ones(2, 2048), "moments must be"),
        (torch.ones(2, 12), torch.ones(3, 2048), "histogram must be"),
        (torch.ones(2, 12) * torch.tensor([[1.0], [0.0]]), torch.ones(2, 2048), "block 1 has no scores"),
        (torch.full((1, 12), math.nan), torch.ones(1, 2048), "finite"),
    ],
)
def test_bad_statistics_are_refused(moments, histogram, message):
    with pytest.raises(ValueError, match=message):
        ScoreDistribution(moments, histogram)


def test_blocks_without_matrices_are_refused():
    with pytest.raises(ValueError, match="at least one matrix"):
        ScoreDistribution.measure([[]])


def test_a_thousand_candidates_a_second():
    distribution = ScoreDistribution.measure([[matrices("norm", 0.02 + 0.002 * i, i, 50)] for i in range(32)])
    rng = random.Random(0)
    functions = list({random_function(rng) for _ in range(2000)})
    begin = time.process_time()
    for function in functions:
        distribution.values(function)
    assert len(functions) / (time.process_time() - begin) > 1000
