"""The family of metrics: its corners are the published metrics, and between them it does what it says."""

from dataclasses import replace

import pytest
import torch

from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.statistics import QUANTITIES
from pruneengine.model import find_groups, get_linear
from pruneengine.structured.scores.metric_family import SPECIAL_CASES, MetricPoint, score_point
from pruneengine.structured.scores.metrics import METRICS, MemberView
from pruneengine.structured.scores.score import AGGREGATES, score
from pruneengine.structured.scores.weight_sums import WeightSums
from tests.helpers.tiny import tiny_model, tiny_tokens

ACTIVATION = MetricPoint(share=1, norm_power=0.7)


@pytest.fixture(scope="module", params=["llama-gqa-tied", "llama-biases", "qwen2-biases"])
def case(request):
    model = tiny_model(request.param)
    return model, calibrate(model, tiny_tokens(), QUANTITIES, batch_size=2)


def assert_equal(found, expected, rtol=1e-5):
    assert found.groups.keys() == expected.groups.keys()
    for name, values in expected.groups.items():
        torch.testing.assert_close(found.groups[name], values, rtol=rtol, atol=0)
    torch.testing.assert_close(found.layers, expected.layers, rtol=rtol, atol=0)


def vector(scores):
    return torch.cat(list(scores.groups.values()))


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("name", SPECIAL_CASES)
def test_special_cases_equal_the_metrics(case, name, aggregate):
    model, statistics = case
    # Energy is defined at the last member alone, however members are combined.
    point = SPECIAL_CASES[name] if name == "energy" else replace(SPECIAL_CASES[name], aggregate=aggregate)
    expected = score(model, name, statistics, aggregate="last" if name == "energy" else aggregate)
    assert_equal(score_point(model, point, statistics), expected)
    assert point.needs == METRICS[name].needs


def test_every_metric_but_random_is_a_special_case():
    assert set(METRICS) - {"random"} == set(SPECIAL_CASES)


def test_energy_is_one_score_for_every_aggregate_but_products(case):
    model, statistics = case
    point = SPECIAL_CASES["energy"]
    for aggregate in set(AGGREGATES) - {"prod"}:
        assert_equal(score_point(model, point, statistics), score(model, "energy", statistics, aggregate=aggregate))


@pytest.mark.parametrize("order", ["first", "each", "second", "mix"])
def test_tau_moves_straight_from_coarse_to_fine(case, order):
    model, statistics = case
    coarse, half, fine = (vector(score_point(model, MetricPoint(order, tau), statistics)) for tau in (0, 0.25, 1))
    torch.testing.assert_close(half, 0.75 * coarse + 0.25 * fine, rtol=1e-5, atol=0)
    if order != "second":
        assert bool((coarse <= fine * (1 + 1e-5)).all())
    assert not torch.equal(coarse, fine)


def test_coarse_second_order_is_the_fisher_information_of_a_gate(case):
    model, statistics = case
    member = find_groups(model).groups[1].members[-1]
    expected = statistics.get("signed", member.module).double().square().mean(0)
    found = score_point(model, MetricPoint("second", 0, aggregate="last"), statistics)
    torch.testing.assert_close(found.groups["layers.0.mlp"].double(), expected, rtol=1e-5, atol=0)


def test_coarse_mix_is_the_absolute_sum_of_both_orders(case):
    model, statistics = case
    found = score_point(model, MetricPoint("mix", tau=0, aggregate="last"), statistics).groups["layers.1.mlp"]
    down = "model.layers.1.mlp.down_proj"
    expected = (statistics.mean("signed", down) - statistics.mean("fisher", down) / 2).abs()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("moment", ["second", "variance"])
def test_the_activation_part_is_its_formula(case, moment):
    model, statistics = case
    point = MetricPoint(share=1, weight_power=2, norm_power=0.6, moment=moment)
    found = score_point(model, point, statistics).groups["layers.2.mlp"].double()
    inputs, handles = {}, []
    for name in ("gate_proj", "up_proj", "down_proj"):
        linear = get_linear(model, f"model.layers.2.mlp.{name}")
        handles.append(linear.register_forward_pre_hook(lambda _m, args, n=name: inputs.update({n: args[0].detach()})))
    with torch.no_grad():
        model(input_ids=tiny_tokens(), use_cache=False)
    for handle in handles:
        handle.remove()
    expected = torch.zeros_like(found)
    for name, x in inputs.items():
        x = x.double()
        tokens = x.flatten(0, 1)
        spread = tokens if moment == "second" else tokens - tokens.mean(0)
        norm = (spread.square().mean(0) * x.shape[1]).sqrt()
        elements = get_linear(model, f"model.layers.2.mlp.{name}").weight.detach().double().square() * norm**0.6
        expected += elements.sum(0 if name == "down_proj" else 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_between_the_parts_units_are_ranked_by_normalised_scores(case):
    model, statistics = case
    taylor, activation = MetricPoint(), replace(ACTIVATION, share=1)
    first, second = (score_point(model, p, statistics) for p in (taylor, activation))
    found = score_point(model, replace(ACTIVATION, share=0.3), statistics)
    for name, values in found.groups.items():
        a, b = (part.groups[name] / part.groups[name].mean() for part in (first, second))
        blended = 0.7 * a + 0.3 * b
        torch.testing.assert_close(values / values.mean(), blended / blended.mean(), rtol=1e-4, atol=0)


def test_scaling_the_activations_changes_no_ranking(case):
    """The two parts have different units, so neither may win by its size."""
    model, statistics = case
    louder = {q: {n: t * (100 if q == "squares" else 1) for n, t in v.items()} for q, v in statistics.tensors.items()}
    point = replace(ACTIVATION, share=0.5)
    found = [vector(score_point(model, point, s)) for s in (statistics, replace(statistics, tensors=louder))]
    assert torch.equal(found[0].argsort(), found[1].argsort())


@pytest.mark.parametrize("point", [*SPECIAL_CASES.values(), replace(ACTIVATION, share=0.4, moment="variance")])
def test_it_needs_exactly_what_it_says(case, point):
    model, statistics = case
    only = replace(statistics, tensors={q: statistics.tensors[q] for q in point.needs})
    assert_equal(score_point(model, point, only), score_point(model, point, statistics), rtol=0)
    for quantity in point.needs:
        less = replace(statistics, tensors={q: t for q, t in only.tensors.items() if q != quantity})
        with pytest.raises(ValueError, match=f"the metric needs the quantity '{quantity}'"):
            score_point(model, point, less)


def test_kinds_and_layers_are_those_asked_for(case):
    model, statistics = case
    found = score_point(model, MetricPoint(), statistics, kinds=("mlp",), layers=range(1, 3))
    assert list(found.groups) == ["layers.1.mlp", "layers.2.mlp"]
    assert torch.equal(found.groups["layers.2.mlp"], score(model, "param_first", statistics).groups["layers.2.mlp"])


@pytest.fixture
def reads(monkeypatch):
    """The modules whose weights are read, in order."""
    seen, plain = [], MemberView.weight_sums
    monkeypatch.setattr(MemberView, "weight_sums", lambda v, *args: seen.append(v.member.module) or plain(v, *args))
    return seen


def test_a_cache_changes_nothing_and_saves_reads_of_weights(case, reads):
    model, statistics = case
    cache, members = WeightSums(model), [m for g in find_groups(model).groups for m in g.members]
    rows = [m.module for m in members if m.axis == 0]

    def read(point):
        expected = score_point(model, point, statistics)
        reads.clear()
        assert_equal(score_point(model, point, statistics, cache=cache), expected, rtol=0)
        return list(reads)

    assert set(read(ACTIVATION)) == {m.module for m in members}
    assert read(ACTIVATION) == []
    # Another exponent of the norm: it factors out of the sums over columns.
    assert sorted(read(replace(ACTIVATION, norm_power=1.3))) == sorted(rows)
    assert read(replace(ACTIVATION, norm_power=1.9, aggregate="last")) == []


def test_a_cache_tells_statistics_apart_and_forgets_the_oldest(case, reads):
    model, statistics = case
    cache = WeightSums(model, recent=1)
    rows = sum(m.axis == 0 for g in find_groups(model).groups for m in g.members)
    for subset in (statistics.subset([0]), statistics.subset([1, 2]), statistics.subset([0])):
        expected = score_point(model, ACTIVATION, subset)
        reads.clear()
        assert_equal(score_point(model, ACTIVATION, subset, cache=cache), expected, rtol=0)
        assert len(reads) >= rows


def test_a_cache_of_another_model_is_refused(case):
    model, statistics = case
    with pytest.raises(ValueError, match="cache holds sums of another"):
        score_point(model, ACTIVATION, statistics, cache=WeightSums(tiny_model()))
    with pytest.raises(ValueError, match="recent must be at least 1, got 0"):
        WeightSums(model, recent=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"order": "third"}, ValueError, "unknown order 'third'; choose from first, each, second, mix"),
        ({"moment": "fourth"}, ValueError, "unknown moment 'fourth'"),
        ({"aggregate": "median"}, ValueError, "unknown aggregate 'median'"),
        ({"tau": 1.01}, ValueError, r"tau must lie in \[0, 1\], got 1.01"),
        ({"tau": float("nan")}, ValueError, "tau must lie"),
        ({"share": -0.1}, ValueError, r"share must lie in \[0, 1\], got -0.1"),
        ({"norm_power": 2.5}, ValueError, r"norm_power must lie in \[0, 2\], got 2.5"),
        ({"norm_power": "1"}, TypeError, "norm_power must be a number, got '1'"),
        ({"share": True}, TypeError, "share must be a number, got True"),
        ({"weight_power": 3}, ValueError, "weight_power must be 1 or 2, got 3"),
        ({"weight_power": 1.0}, ValueError, "weight_power must be 1 or 2, got 1.0"),
        ({"alpha": 1}, ValueError, "unknown key 'alpha'; known: order, tau"),
    ],
)
def test_bad_points_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        MetricPoint.from_dict(MetricPoint().to_dict() | change)


@pytest.mark.parametrize("point", [*SPECIAL_CASES.values(), MetricPoint("mix", 0.3, 2, 1.25, "variance", 0.4, "prod")])
def test_points_survive_a_dict(point):
    assert MetricPoint.from_dict(point.to_dict()) == point


def test_points_in_words():
    assert SPECIAL_CASES["wanda"].in_words() == (
        "A unit is scored by the sum of |W| times the input's root mean square, added up over its members."
    )
    assert SPECIAL_CASES["energy"].in_words() == (
        "A unit is scored by the sum of W^2 times the input's root mean square to the power 2, "
        "at its last member alone."
    )
    assert MetricPoint(tau=0, aggregate="mean").in_words() == (
        "A unit is scored by the sum of w*g taken absolutely, averaged over its members."
    )
    assert MetricPoint("mix", 0.25, share=0.4, moment="variance", aggregate="prod").in_words() == (
        "A unit is scored by 60% (75% the sum of w*g - w^2*F/2 taken absolutely, 25% the sum of |w*g - w^2*F/2|) and "
        "40% the sum of |W| times the input's standard deviation, multiplied over its members."
    )
    words = {replace(p, aggregate="max").in_words() for p in SPECIAL_CASES.values()}
    assert len(words) == len(SPECIAL_CASES)
    assert len({MetricPoint(aggregate=name).in_words() for name in AGGREGATES}) == len(AGGREGATES)
