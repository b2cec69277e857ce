"""HyWIA's blend: exact at its ends, indifferent to scale and order, and sensible at its limits."""

import math
from dataclasses import replace

import pytest
import torch

import pruneengine
from pruneengine.calibration.calibrate import calibrate
from pruneengine.model import find_groups
from pruneengine.report.values.blends import blends, rank_correlation
from pruneengine.structured.scores.hywia import VARIANTS, HyWIA, fuse, methods, needs_of, normalise
from pruneengine.structured.scores.hywia_attention import LearnedAttention, average_ranks, features
from pruneengine.structured.scores.metrics import METRICS
from pruneengine.structured.scores.score import score
from tests.helpers.tiny import tiny_model, tiny_tokens

STRUCTURE = find_groups(tiny_model())
QUANTITIES = ("signed", "abs_mean")


def attention(seed: int = 3) -> LearnedAttention:
    generator = torch.Generator().manual_seed(seed)
    start = LearnedAttention.initial(seed)
    return replace(start, key=torch.randn(start.key.shape, generator=generator, dtype=torch.float64))


def options(variant: str, **more) -> HyWIA:
    return HyWIA(variant, attention=attention() if variant == "c" else None, **more)


def random_parts(seed: int = 0):
    """Coarse and fine scores like Taylor's: heavy tails, coarse below fine, groups of very different size."""
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = {}, {}
    for number, group in enumerate(STRUCTURE.groups):
        scale = 10.0 ** (number % 4 - 6)
        fine[group.name] = torch.randn(group.units, generator=generator).exp() * scale
        coarse[group.name] = fine[group.name] * torch.rand(group.units, generator=generator)
    return coarse, fine


def fused(coarse, fine, how: HyWIA):
    return fuse(coarse, fine, STRUCTURE.groups, STRUCTURE.num_layers, how)


def order(scores) -> torch.Tensor:
    return torch.cat(list(scores.values())).argsort()


@pytest.mark.parametrize("variant", ["llama-gqa-tied", "llama-mha-untied", "llama-biases"])
@pytest.mark.parametrize(("blend", "part"), [(0, "vectorize"), (1.0, "param_first")])
def test_a_forced_blend_is_the_part_itself(variant, blend, part):
    model = tiny_model(variant)
    statistics = calibrate(model, tiny_tokens(), QUANTITIES)
    expected = score(model, part, statistics)
    found = score(model, "hywia", statistics, hywia=HyWIA(blend=blend))
    assert all(torch.equal(found.groups[name], values) for name, values in expected.groups.items())
    for allocation, shape in (("uniform", "uniform"), ("global", "per-layer"), ("global", "uniform")):
        config = pruneengine.PruneConfig(method=part, ratio=0.4, allocation=allocation, shape=shape, round_to=1)
        fresh = [tiny_model(variant), tiny_model(variant)]
        forced = replace(config, method="hywia", hywia_blend=blend)
        plans = [
            pruneengine.prune(m, config=c, statistics=statistics).plan
            for m, c in zip(fresh, (config, forced), strict=True)
        ]
        assert plans[0] == plans[1]


@pytest.mark.parametrize("fold", ["gqa", "llm-pruner"])
@pytest.mark.parametrize("aggregate", ["mean", "max", "last"])
def test_the_parts_follow_aggregate_and_fold(aggregate, fold):
    model = tiny_model()
    statistics = calibrate(model, tiny_tokens(), QUANTITIES)
    expected = score(model, "param_first", statistics, aggregate=aggregate, fold=fold)
    found = score(model, "hywia", statistics, aggregate=aggregate, fold=fold, hywia=HyWIA(blend=1))
    assert all(torch.equal(found.groups[name], values) for name, values in expected.groups.items())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("factors", [(3.7, 1.0), (1.0, 1e-5), (1e4, 0.3)])
def test_a_factor_on_either_score_changes_no_order(variant, factors):
    coarse, fine = random_parts()
    before, blend = fused(coarse, fine, options(variant))
    parts = (coarse, fine)
    scaled = [
        {name: t.double() * factor for name, t in part.items()} for part, factor in zip(parts, factors, strict=True)
    ]
    after, again = fused(*scaled, options(variant))
    ratio = torch.cat([after[name] / before[name] for name in before])
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-10, atol=0)
    for name, share in blend.share.items():
        torch.testing.assert_close(again.share[name], share, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_units_in_another_order_get_the_same_scores(variant):
    coarse, fine = random_parts(1)
    coarse["layers.1.mlp"][:9] = coarse["layers.1.mlp"][9]
    shuffled = {g.name: torch.randperm(g.units, generator=torch.Generator().manual_seed(5)) for g in STRUCTURE.groups}
    before, _ = fused(coarse, fine, options(variant))
    after, _ = fused(*({n: t[shuffled[n]] for n, t in part.items()} for part in (coarse, fine)), options(variant))
    for name, values in before.items():
        torch.testing.assert_close(after[name], values[shuffled[name]], rtol=1e-12, atol=0)


def test_the_attention_of_two_tokens_is_the_formula():
    coarse, fine = random_parts(2)
    for temperature in (0.5, 1.0, 4.0):
        scores, blend = fused(coarse, fine, HyWIA("a", temperature))
        name = "layers.2.mlp"
        c, f = (part[name].double() / part[name].double().mean() for part in (coarse, fine))
        logits = [[float(x @ y) / temperature / math.sqrt(len(c)) for y in (c, f)] for x in (c, f)]
        rows = [[math.exp(v - max(row)) for v in row] for row in logits]
        share = sum(row[1] / sum(row) for row in rows) / 2
        assert blend.share[name].tolist() == pytest.approx([share] * len(c))
        mixed = (1 - share) * c + share * f
        torch.testing.assert_close(scores[name] / scores[name].mean(), mixed / mixed.mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_high_temperature_averages_and_a_low_one_picks(variant):
    coarse, fine = random_parts(4)
    _, hot = fused(coarse, fine, options(variant, temperature=1e12))
    assert all(torch.allclose(share, torch.full_like(share, 0.5)) for share in hot.share.values())
    _, cold = fused(coarse, fine, options(variant, temperature=1e-300))
    picks = torch.cat(list(cold.share.values()))
    assert set(picks.tolist()) <= ({0.0, 0.5, 1.0} if variant == "a" else {0.0, 1.0})


def test_per_unit_attention_picks_the_greater_score_when_cold():
    coarse, fine = random_parts(4)
    _, cold = fused(coarse, fine, HyWIA("b", 1e-9))
    for name, share in cold.share.items():
        assert torch.equal(share, (normalise(fine[name]) > normalise(coarse[name])).double())


@pytest.mark.parametrize("how", [*map(options, VARIANTS), HyWIA(blend=0.25)], ids=[*VARIANTS, "fixed"])
def test_a_score_that_is_zero_leaves_the_say_to_the_other(how):
    coarse, fine = random_parts()
    coarse["layers.0.mlp"].zero_()
    coarse["layers.1.mlp"].zero_()
    fine["layers.1.mlp"].zero_()
    scores, blend = fused(coarse, fine, how)
    assert blend.share["layers.0.mlp"].eq(1).all()
    assert torch.equal(scores["layers.0.mlp"].argsort(), fine["layers.0.mlp"].argsort())
    assert scores["layers.1.mlp"].eq(0).all()
    assert all(bool(values.isfinite().all()) for values in scores.values())
    zeros = [{name: torch.zeros_like(t) for name, t in coarse.items()}] * 2
    assert all(values.eq(0).all() for values in fused(*zeros, how)[0].values())


def test_an_untrained_attention_blends_equally():
    _, blend = fused(*random_parts(), HyWIA("c", attention=LearnedAttention.initial()))
    assert all(share.eq(0.5).all() for share in blend.share.values())


def test_features_lie_in_the_unit_interval():
    coarse, fine = (torch.tensor([0.0, 1e-30, 1.0, 1e30]), torch.tensor([0.5, 0.5, 0.5, 2.5]))
    for found in features(coarse, fine, "mlp", 0.0):
        assert found.abs().max() <= 1
    assert average_ranks(fine).tolist() == [1, 1, 1, 3]


def test_rank_correlation_is_spearmans():
    ascending = torch.arange(6.0)
    assert rank_correlation(ascending, ascending.exp()) == pytest.approx(1)
    assert rank_correlation(ascending, -ascending) == pytest.approx(-1)
    assert rank_correlation(torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([2.0, 1, 4, 3, 5])) == pytest.approx(0.8)
    assert math.isnan(rank_correlation(ascending, torch.ones(6)))


def test_the_diagnosis_counts_what_both_would_remove():
    model = tiny_model()
    statistics = calibrate(model, tiny_tokens(), QUANTITIES)
    scores = score(model, "hywia", statistics, hywia=HyWIA("a"))
    ratios = pruneengine.allocate(STRUCTURE, scores, 0.5)
    plan = pruneengine.make_plan(STRUCTURE, scores, ratios, 0.5)
    rows = {row.group: row for row in blends(scores, plan)}
    assert list(rows) == [g.name for g in STRUCTURE.groups]
    row = rows["layers.1.mlp"]
    alone = [score(model, part, statistics).groups["layers.1.mlp"] for part in ("vectorize", "param_first")]
    lowest = [set(s.sort(stable=True).indices[: row.removed].tolist()) for s in alone]
    assert row.removed == 72 - len(plan.keep["layers.1.mlp"])
    assert row.overlap == len(lowest[0] & lowest[1]) / row.removed
    assert row.low == row.high == pytest.approx(row.share)
    with pytest.raises(ValueError, match="method 'vectorize' fuses nothing"):
        blends(score(model, "vectorize", statistics), plan)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"variant": "d"}, ValueError, "unknown hywia variant 'd'; choose from a, b, c"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.inf}, ValueError, "temperature must be positive and finite, got inf"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive and finite, got nan"),
        ({"blend": 1.5}, ValueError, r"blend must lie in \[0, 1\], got 1.5"),
        ({"blend": "half"}, TypeError, "blend must be a number, got 'half'"),
        ({"temperature": None}, TypeError, "temperature must be a number, got None"),
    ],
)
def test_bad_options_are_named(values, error, message):
    with pytest.raises(error, match=message):
        HyWIA(**values)


def test_a_fused_method_is_a_method_like_the_others():
    assert methods() == (*METRICS, "hywia")
    assert needs_of("hywia") == {"signed", "abs_mean"}
    model = tiny_model()
    with pytest.raises(ValueError, match="method 'hywia' needs the quantity 'abs_mean', which was not collected"):
        score(model, "hywia", calibrate(model, tiny_tokens(), ("signed",)))
    with pytest.raises(ValueError, match=r"unknown method 'hiwya'; choose from random, .*, hywia"):
        score(model, "hiwya")
    with pytest.raises(ValueError, match="variant 'c' is fitted"):
        score(model, "hywia", calibrate(model, tiny_tokens(), QUANTITIES), hywia=HyWIA("c"))
