"""Allocations of the search: budgets are met, curves do what they say, and impossible ones are refused."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruneengine.model import find_groups
from pruneengine.search.adapruner.space.curves import NORMALISATIONS, Curve
from pruneengine.search.adapruner.space.kv_groups import CAP, legal_heads, uniform_ratios
from pruneengine.structured.allocate import allocate
from pruneengine.structured.plan import make_plan
from pruneengine.structured.scores.score import Scores
from tests.helpers.tiny import VARIANTS, tiny_model

STRUCTURES = {name: find_groups(tiny_model(name, num_hidden_layers=6)) for name in VARIANTS}
STRUCTURE = STRUCTURES["llama-gqa-tied"]
CURVES = st.builds(
    Curve,
    slope=st.floats(-1, 1),
    bend=st.floats(-1, 1),
    first=st.integers(0, 3),
    last=st.integers(0, 2),
    adapt=st.floats(0, 1),
    normalise=st.sampled_from(NORMALISATIONS),
    heads=st.floats(0, 2),
)


def random_scores(structure=STRUCTURE, seed=0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    groups = {g.name: torch.rand(g.units, generator=generator) * (1 + g.layer) for g in structure.groups}
    return Scores("random", "sum", groups, torch.ones(structure.num_layers))


SCORES = random_scores()


def profile(curve, ratio=0.3, structure=STRUCTURE, scores=SCORES, **options):
    return curve.profile(structure, scores, ratio, **options)


def spent(ratios, structure=STRUCTURE):
    return sum(ratio * structure.by_name[name].params for name, ratio in ratios.items())


@pytest.mark.parametrize("kinds", [("heads", "mlp"), ("mlp",), ("heads",)])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_no_curve_is_the_uniform_allocation(variant, kinds, normalise):
    structure = STRUCTURES[variant]
    scores = random_scores(structure)
    found = profile(Curve(normalise=normalise), 0.37, structure, scores, kinds=kinds)
    assert found == allocate(structure, scores, 0.37, kinds=kinds)


@settings(max_examples=150, deadline=None)
@given(curve=CURVES, ratio=st.floats(0.05, 0.7), variant=st.sampled_from(list(VARIANTS)), seed=st.integers(0, 3))
def test_every_curve_meets_the_target_or_says_that_it_cannot(curve, ratio, variant, seed):
    structure = STRUCTURES[variant]
    open_layers = range(curve.first, structure.num_layers - curve.last)
    groups = structure.of_kind(("heads", "mlp") if curve.heads else ("mlp",), open_layers)
    limits = {g.name: min(CAP, 1 - 1 / g.units) for g in groups}
    budget = ratio * structure.prunable_params(("heads", "mlp"))
    if budget > spent(limits, structure):
        with pytest.raises(ValueError, match=f"ratio {ratio:g} is out of reach"):
            profile(curve, ratio, structure, random_scores(structure, seed))
        return
    ratios = profile(curve, ratio, structure, random_scores(structure, seed))
    assert ratios.keys() == limits.keys()
    assert spent(ratios, structure) == pytest.approx(budget, rel=1e-9)
    assert all(0 <= ratios[name] <= limits[name] for name in limits)


@settings(max_examples=60, deadline=None)
@given(curve=CURVES, ratio=st.floats(0.1, 0.5))
def test_plans_meet_the_target_within_a_unit_and_protect_the_ends(curve, ratio):
    groups = STRUCTURE.of_kind(("mlp",), range(curve.first, STRUCTURE.num_layers - curve.last))
    budget = ratio * STRUCTURE.prunable_params(("heads", "mlp"))
    # Channels must be able to make up for heads that round down.
    assume(budget < 0.8 * sum(g.params for g in groups))
    plan = make_plan(STRUCTURE, SCORES, profile(curve, ratio), ratio, shape="per-layer", round_to=1)
    removed = plan.params_before - plan.params_after
    coarsest = max(g.unit_params for g in STRUCTURE.groups if g.kind == "mlp")
    heads = sum((g.units - len(plan.keep[g.name])) * g.unit_params for g in STRUCTURE.groups if g.kind == "heads")
    assert abs(removed - max(budget, heads)) <= coarsest
    for name, keep in plan.keep.items():
        group = STRUCTURE.by_name[name]
        protected = group.layer < curve.first or group.layer >= STRUCTURE.num_layers - curve.last
        if protected or (curve.heads == 0 and group.kind == "heads"):
            assert len(keep) == group.units


@pytest.mark.parametrize("kind", ["heads", "mlp"])
def test_a_steeper_slope_moves_the_ratio_to_the_later_layers(kind):
    steps = [profile(Curve(slope=s / 4), 0.2) for s in range(-4, 5)]
    for before, after in pairwise(steps):
        assert after[f"layers.5.{kind}"] > before[f"layers.5.{kind}"]
        assert after[f"layers.0.{kind}"] < before[f"layers.0.{kind}"]
    along = [steps[-1][f"layers.{i}.{kind}"] for i in range(6)]
    assert along == sorted(along)
    assert along[0] == 0
    assert along[-1] == pytest.approx(0.4)


def test_opposite_slopes_mirror_each_other():
    up, down = (profile(Curve(slope=s, bend=0.3, first=1, last=1)) for s in (0.6, -0.6))
    for name, value in up.items():
        _, layer, kind = name.split(".")
        assert value == pytest.approx(down[f"layers.{5 - int(layer)}.{kind}"])


def test_a_bend_spares_the_middle_or_the_ends():
    ends, middle = (profile(Curve(bend=b), 0.2) for b in (0.8, -0.8))
    assert ends["layers.0.mlp"] == pytest.approx(ends["layers.5.mlp"])
    assert ends["layers.0.mlp"] > 0.2 > ends["layers.2.mlp"]
    assert middle["layers.0.mlp"] < 0.2 < middle["layers.2.mlp"]


def test_protected_layers_give_nothing_and_the_others_more():
    found = profile(Curve(first=2, last=1), 0.3)
    assert {name.split(".")[1] for name in found} == {"2", "3", "4"}
    assert list(found.values()) == pytest.approx([0.6] * 6)
    inside = profile(Curve(first=1), 0.2, layers=range(1, 5))
    assert {name.split(".")[1] for name in inside} == {"2", "3", "4"}


def test_the_factor_of_heads_is_the_quotient_of_the_ratios():
    for factor in (0.5, 1.0, 1.7):
        found = profile(Curve(heads=factor, slope=0.4), 0.2)
        for layer in range(6):
            assert found[f"layers.{layer}.heads"] == pytest.approx(factor * found[f"layers.{layer}.mlp"])
    assert {name.rsplit(".", 1)[1] for name in profile(Curve(heads=0), 0.2)} == {"mlp"}


def test_full_adaption_without_normalisation_is_the_global_allocation():
    expected = allocate(STRUCTURE, SCORES, 0.3, kinds=("mlp",), allocation="global")
    found = profile(Curve(adapt=1, normalise="none", slope=0.9), 0.3, kinds=("mlp",))
    # The ranking takes whole units; the profile meets the target exactly.
    assert found == pytest.approx(expected, abs=1 / 72)


def test_adaption_moves_straight_from_the_curve_to_the_ranking():
    curve = Curve(slope=0.5, adapt=0.25)
    straight, ranked, between = (profile(replace(curve, adapt=a), 0.2) for a in (0, 1, 0.25))
    for name, value in between.items():
        assert value == pytest.approx(0.75 * straight[name] + 0.25 * ranked[name])


@pytest.mark.parametrize("normalise", ["trimmed", "median"])
def test_a_robust_middle_ignores_a_layer_that_is_loud_or_holds_an_outlier(normalise):
    curve = Curve(adapt=1, normalise=normalise)
    expected = profile(curve)
    loud = {name: values * (1e6 if ".3." in name else 1) for name, values in SCORES.groups.items()}
    louder = replace(SCORES, groups=loud)
    assert profile(curve, scores=louder) == pytest.approx(expected)
    assert profile(replace(curve, normalise="none"), scores=louder)["layers.3.mlp"] == 0
    spike = {name: values.clone() for name, values in SCORES.groups.items()}
    spike["layers.2.mlp"][int(spike["layers.2.mlp"].argmax())] = 1e6
    spiked = replace(SCORES, groups=spike)
    assert profile(curve, scores=spiked) == pytest.approx(expected)
    # Under the mean one massive unit makes all others of its layer look worthless.
    assert profile(replace(curve, normalise="mean"), scores=spiked)["layers.2.mlp"] == CAP


def test_the_median_is_blind_at_a_half_where_the_trimmed_mean_sees():
    """Layer 0 has few units of worth, layer 5 many: at a half the median still takes half of each."""
    groups = {name: values.double() ** (6 if ".0." in name else 1) for name, values in SCORES.groups.items()}
    options = {"ratio": 0.5, "kinds": ("mlp",), "scores": replace(SCORES, groups=groups)}
    blind = profile(Curve(adapt=1, normalise="median"), **options)
    assert list(blind.values()) == pytest.approx([0.5] * 6, abs=2 / 72)
    sees = profile(Curve(adapt=1, normalise="trimmed"), **options)
    assert sees["layers.0.mlp"] > 0.6 > sees["layers.5.mlp"]


def test_scores_of_zero_go_first():
    dead = {name: torch.zeros_like(v) if name == "layers.4.mlp" else v for name, v in SCORES.groups.items()}
    found = profile(Curve(adapt=1), 0.1, scores=replace(SCORES, groups=dead))
    assert found["layers.4.mlp"] == max(found.values())
    mostly = {name: v.clone() for name, v in SCORES.groups.items()}
    mostly["layers.4.mlp"][:50] = 0
    found = profile(Curve(adapt=1, normalise="median"), 0.2, kinds=("mlp",), scores=replace(SCORES, groups=mostly))
    assert found["layers.4.mlp"] == pytest.approx(50 / 72, abs=0.05)


@pytest.mark.parametrize(
    ("curve", "ratio", "options", "message"),
    [
        (Curve(first=2, last=2), 0.4, {}, r"layers 0:6 less 2 first and 2 last, .* can give at most 0\.\d{3}"),
        (Curve(first=3, last=4), 0.1, {}, "can give at most 0.000"),
        (Curve(heads=0), 0.8, {}, "with heads 0 and at most 0.9"),
        (Curve(heads=0), 0.2, {"kinds": ("heads",)}, "can give at most 0.000"),
        (Curve(), 0.2, {"kinds": ("layers", "mlp")}, "kinds must be heads, mlp or both"),
        (Curve(), 0.2, {"kinds": ()}, "kinds must be heads, mlp or both"),
        (Curve(), 0.0, {}, r"ratio must lie in \(0, 1\), got 0.0"),
    ],
)
def test_curves_without_a_legal_plan_are_refused(curve, ratio, options, message):
    with pytest.raises(ValueError, match=message):
        profile(curve, ratio, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"slope": 1.5}, ValueError, r"slope must lie in \[-1, 1\], got 1.5"),
        ({"bend": "0"}, TypeError, "bend must be a number, got '0'"),
        ({"first": -1}, ValueError, "first must be a whole number from 0, got -1"),
        ({"last": 1.0}, ValueError, "last must be a whole number from 0, got 1.0"),
        ({"adapt": 2}, ValueError, r"adapt must lie in \[0, 1\], got 2"),
        ({"normalise": "rank"}, ValueError, "unknown normalise 'rank'; choose from none, mean, trimmed, median"),
        ({"heads": 2.1}, ValueError, r"heads must lie in \[0, 2\], got 2.1"),
        ({"tilt": 1}, ValueError, "unknown key 'tilt'; known: slope, bend"),
    ],
)
def test_bad_curves_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        Curve.from_dict(Curve().to_dict() | change)


@given(curve=CURVES)
def test_curves_survive_a_dict(curve):
    assert Curve.from_dict(curve.to_dict()) == curve


@settings(max_examples=60, deadline=None)
@given(ratio=st.floats(0.04, 0.75), variant=st.sampled_from(list(VARIANTS)))
def test_every_legal_number_of_heads_is_taken_and_channels_make_up_the_rest(ratio, variant):
    structure = STRUCTURES[variant]
    scores = random_scores(structure)
    legal = legal_heads(structure, ratio)
    for count in legal:
        ratios = uniform_ratios(structure, ratio, count)
        assert spent(ratios, structure) == pytest.approx(ratio * structure.prunable_params(("heads", "mlp")))
        assert ratios["layers.0.mlp"] <= CAP + 1e-9
        plan = make_plan(structure, scores, ratios, ratio, round_to=1)
        units = structure.by_name["layers.0.heads"].units
        assert {len(k) for n, k in plan.keep.items() if n.endswith("heads")} == {units - count}
        one_channel = 6 * structure.by_name["layers.0.mlp"].unit_params
        assert abs(plan.reached - ratio) * structure.prunable_params(("heads", "mlp")) <= one_channel / 2 + 1
    # One more on either side would leave channels too little or too much to do.
    heads, channels = structure.by_name["layers.0.heads"], structure.by_name["layers.0.mlp"]
    for count in {legal.start - 1, legal.stop} & set(range(heads.units)):
        rest = ratio * (heads.params + channels.params) - count * heads.unit_params
        assert not 0 <= rest <= CAP * channels.params


def test_legal_heads_of_one_kind():
    assert legal_heads(STRUCTURE, 0.5, ("mlp",)) == range(0, 1)
    assert uniform_ratios(STRUCTURE, 0.5, 0, ("mlp",))["layers.3.mlp"] == pytest.approx(0.5)
    assert legal_heads(STRUCTURE, 0.6, ("heads",)) == range(2, 3)
    plan = make_plan(STRUCTURE, SCORES, uniform_ratios(STRUCTURE, 0.6, 2, ("heads",)), 0.6, kinds=("heads",))
    assert {len(k) for n, k in plan.keep.items() if n.endswith("heads")} == {1}


def test_a_ratio_that_is_whole_heads_leaves_the_channels_alone():
    heads = STRUCTURE.by_name["layers.0.heads"]
    ratio = 6 * heads.unit_params / STRUCTURE.prunable_params(("heads", "mlp"))
    assert legal_heads(STRUCTURE, ratio) == range(0, 2)
    assert uniform_ratios(STRUCTURE, ratio, 1)["layers.0.mlp"] == pytest.approx(0, abs=1e-12)


def test_numbers_of_heads_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"kv_groups 3 is not legal at ratio 0.3; choose from \[0, 1"):
        uniform_ratios(STRUCTURE, 0.3, 3)
    with pytest.raises(ValueError, match=r"ratio 0\.95 is out of reach of layers of one width: with up to 2 KV groups"):
        legal_heads(STRUCTURE, 0.95)
    with pytest.raises(ValueError, match=r"ratio 0\.1 removes nothing: a layer has 3 KV groups"):
        legal_heads(STRUCTURE, 0.1, ("heads",))
    with pytest.raises(ValueError, match="kinds must be heads, mlp or both"):
        legal_heads(STRUCTURE, 0.2, ("layers",))
    narrow = replace(STRUCTURE, groups=(replace(STRUCTURE.groups[1], units=60), *STRUCTURE.groups[2:]))
    with pytest.raises(ValueError, match=r"layers of one width are needed, but mlp have \[60, 72\] units"):
        legal_heads(narrow, 0.2)
