"""Values of allocation functions for blocks: cached statistics against whole vectors, in both readings."""

import itertools
import math
import random
import time

import numpy as np
import pytest
import torch

from pruneengine import ops
from pruneengine.search.dsa.evolution import random_function
from pruneengine.sparse.allocations.block_scores import ScoreMoments
from pruneengine.sparse.functions.distribution import ScoreDistribution, tells_apart
from pruneengine.sparse.functions.function import PUBLISHED, Function
from pruneengine.sparse.functions.grammar import parse
from pruneengine.sparse.functions.names import PRE, REDUCE
from pruneengine.sparse.functions.operations import apply_post, apply_pre
from pruneengine.sparse.functions.reductions import apply_reduce
from tests.helpers.published_functions import PUBLISHED_PRE, published


def one_block(x):
    return x.double().numpy()[None], np.ones((1, len(x)))


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


def measured(blocks):
    """The distribution of blocks of ``(weight, norm)``, one block a layer."""
    read = [ops.block_moments(weight, norm) for block in blocks for weight, norm in block]
    layers = tuple(layer for layer, block in enumerate(blocks) for _ in block)
    found = ScoreMoments(*(torch.stack(parts) for parts in zip(*read, strict=True)), layers, layers, (0,) * len(layers))
    merged = found.of_layers()
    return ScoreDistribution(merged.moments, merged.histogram)


@pytest.fixture(scope="module")
def distribution(blocks):
    return measured(blocks)


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


def test_one_smooth_operation_is_good_to_a_ten_thousandth(distribution, blocks):
    chains = [(name,) for name in ("sigmoid", "tanh", "minmax", "sqrt", "square")]
    found = errors(distribution, blocks, chains)
    assert max(found.values()) < 1e-4, max(found, key=found.get)


def test_chains_of_two_are_good_to_a_millionth_as_a_rule_and_a_percent_nearly_always(distribution, blocks):
    chains = [pre for pre in itertools.product(PRE, repeat=2) if not set(pre) & {"exp", "softmax"}]
    one_of_each = measured(blocks[5:])
    found = np.array(list(errors(one_of_each, blocks[5:], chains).values()))
    assert np.median(found) < 1e-5
    assert np.quantile(found, 0.9) < 1e-2


def test_exponentials_are_as_good_as_the_few_greatest_scores_allow(distribution, blocks):
    found = errors(
        distribution, blocks, [("exp",), ("softmax",), ("sigmoid", "exp")], ("mean", "var", "std", "geometric")
    )
    assert np.median(list(found.values())) < 3e-3
    assert max(found.values()) < 0.02


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
    assert np.median(distances) < 1e-5
    assert np.mean(np.array(distances) < 1e-2) > 0.9


def position(v):
    return (v - v.min()) / np.ptp(v)


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
    np.testing.assert_allclose(distribution.values(function), expected, rtol=1e-3, atol=1e-6)


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
    distribution = measured([[(weight[0], None)] for weight in flat])
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


def test_functions_that_rounding_rules_are_not_valid(distribution):
    assert distribution.is_valid(parse("no | frobenius | sin"))
    assert not distribution.is_valid(parse("exp | frobenius | sin"))
    assert not distribution.is_valid(parse("exp, square | mean | tan"))


def test_tells_apart():
    assert tells_apart(np.array([1.0, 1.001]))
    assert not tells_apart(np.array([1.0, 1.0 + 1e-9]))
    assert not tells_apart(np.array([0.0, 0.0]))
    assert not tells_apart(np.array([0.0, math.nan]))


def test_matrices_of_a_block_add_up():
    parts = [matrices("norm", 0.1, seed, rows) for seed, rows in ((1, 30), (2, 50))]
    both = measured([parts, parts[:1]])
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


def test_a_thousand_candidates_a_second():
    distribution = measured([[matrices("norm", 0.02 + 0.002 * i, i, 50)] for i in range(32)])
    rng = random.Random(0)
    functions = list({random_function(rng) for _ in range(2000)})
    begin = time.process_time()
    for function in functions:
        distribution.values(function)
    assert len(functions) / (time.process_time() - begin) > 1000
