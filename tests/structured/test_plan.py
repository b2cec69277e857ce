"""Targets are met after rounding, the lowest scores go, and plans survive JSON."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from pruneengine.model import find_groups
from pruneengine.structured.allocate import allocate
from pruneengine.structured.plan import Plan, make_plan, rounding_warning
from pruneengine.structured.scores.score import Scores, score
from tests.helpers.tiny import tiny_model


def smollm2_structure():
    sizes = {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }  # fmt: skip
    with torch.device("meta"):
        return find_groups(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)))


STRUCTURE = smollm2_structure()


def random_scores(structure, seed=0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    groups = {g.name: torch.rand(g.units, generator=generator) * (1 + g.layer) for g in structure.groups}
    layers = torch.stack(
        [groups[f"layers.{i}.heads"].sum() + groups[f"layers.{i}.mlp"].sum() for i in range(structure.num_layers)]
    )
    return Scores("random", "sum", groups, layers)


def plan(ratio, kinds=("heads", "mlp"), allocation="uniform", shape="uniform", structure=STRUCTURE, **options):
    scores = random_scores(structure)
    layers = options.pop("layers", None)
    ratios = allocate(structure, scores, ratio, kinds=kinds, allocation=allocation, layers=layers)
    return make_plan(structure, scores, ratios, ratio, kinds=kinds, shape=shape, **options)


@settings(max_examples=40, deadline=None)
@given(
    ratio=st.floats(0.03, 0.8),
    allocation=st.sampled_from(["uniform", "global"]),
    shape=st.sampled_from(["uniform", "per-layer"]),
)
def test_asked_and_reached_differ_by_under_half_a_percent(ratio, allocation, shape):
    made = plan(ratio, allocation=allocation, shape=shape)
    assert abs(made.reached - ratio) < 0.005
    removed = sum(
        (STRUCTURE.by_name[n].units - len(k)) * STRUCTURE.by_name[n].unit_params for n, k in made.keep.items()
    )
    assert made.params_before - made.params_after == removed
    assert made.reached == removed / STRUCTURE.prunable_params(("heads", "mlp"))
    if shape == "uniform":
        assert len({len(k) for n, k in made.keep.items() if n.endswith("heads")}) == 1
        assert len({len(k) for n, k in made.keep.items() if n.endswith("mlp")}) == 1
    assert all(len(k) % 8 == 0 for n, k in made.keep.items() if n.endswith("mlp"))


@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
def test_mlp_alone_means_a_share_of_the_mlp(shape):
    made = plan(0.25, kinds=("mlp",), shape=shape)
    assert {len(k) for n, k in made.keep.items() if n.endswith("mlp")} == {1152}
    assert {len(k) for n, k in made.keep.items() if n.endswith("heads")} == {3}
    assert made.reached == 0.25


def test_layers_alone():
    made = plan(0.2, kinds=("layers",))
    assert len(made.kept_layers) == 24
    scores = random_scores(STRUCTURE)
    gone = set(range(30)) - set(made.kept_layers)
    assert scores.layers[list(gone)].max() < scores.layers[list(made.kept_layers)].min()


def test_layers_together_with_widths_meet_the_target():
    made = plan(0.3, kinds=("heads", "mlp", "layers"), shape="per-layer")
    assert len(made.kept_layers) in (25, 26)
    assert abs(made.reached - 0.3) < 0.005
    assert {int(n.split(".")[1]) for n in made.keep} == set(made.kept_layers)


def test_a_layer_range_protects_the_others_and_still_meets_the_target():
    made = plan(0.2, shape="per-layer", layers=range(4, 28))
    assert abs(made.reached - 0.2) < 0.005
    for layer in (0, 3, 28, 29):
        assert len(made.keep[f"layers.{layer}.mlp"]) == 1536
        assert len(made.keep[f"layers.{layer}.heads"]) == 3


@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
def test_the_lowest_scores_go_and_ties_go_by_index(shape):
    structure = find_groups(tiny_model())
    groups = {g.name: torch.ones(g.units) for g in structure.groups}
    groups["layers.1.mlp"] = torch.arange(72.0).flip(0)
    scores = Scores("x", "sum", groups, torch.ones(3))
    ratios = {g.name: 1 / 3 for g in structure.groups}
    made = make_plan(structure, scores, ratios, 1 / 3, shape=shape)
    assert made.keep["layers.1.mlp"] == tuple(range(48))
    assert made.keep["layers.0.mlp"] == tuple(range(24, 72))
    assert made.keep["layers.0.heads"] == (1, 2)


def test_global_takes_the_units_cheapest_per_parameter():
    structure = find_groups(tiny_model())
    scores = random_scores(structure, seed=5)
    ratios = allocate(structure, scores, 0.5, allocation="global")
    per_param = {g.name: sorted((scores.groups[g.name] / g.unit_params).tolist()) for g in structure.groups}
    counts = {g.name: round(ratios[g.name] * g.units) for g in structure.groups}
    highest_gone = max(per_param[n][c - 1] for n, c in counts.items() if c)
    # A unit that stays although it is cheaper must be the last of its group.
    for name, count in counts.items():
        assert per_param[name][count] >= highest_gone * (1 - 1e-6) or count == len(per_param[name]) - 1
    removed = sum(counts[g.name] * g.unit_params for g in structure.groups)
    assert abs(removed / structure.prunable_params(("heads", "mlp")) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.05, "kinds": ("heads",)}, r"ratio 0\.05 removes nothing at legal widths: one KV group of 3"),
        ({"ratio": 0.001, "round_to": 64}, "removes nothing at legal widths"),
        ({"ratio": 0.01, "kinds": ("layers",)}, "one layer is 0.033 of the layers"),
        (
            {"ratio": 0.9, "kinds": ("heads",)},
            r"ratio 0\.9 is out of reach: heads in layers 0:30 can give at most 0\.667",
        ),
        ({"ratio": 0.5, "layers": range(4, 8), "shape": "per-layer"}, "is out of reach"),
        ({"ratio": 0.5, "kinds": ("layers",), "layers": range(2)}, r"out of reach: layers .* at most 0\.067"),
        ({"ratio": 0.9, "kinds": ("mlp", "layers"), "layers": range(1, 3), "shape": "per-layer"}, "is out of reach"),
        ({"ratio": 0.99, "kinds": ("layers",)}, "is out of reach"),
        ({"ratio": 0.5, "kinds": "mlp"}, "kinds must be one or more of heads, mlp, layers"),
        ({"ratio": 0.5, "shape": "pyramid"}, "unknown shape 'pyramid'; choose from uniform, per-layer"),
        ({"ratio": 0.5, "allocation": "owl"}, "unknown allocation 'owl'; choose from uniform, global"),
    ],
)
def test_what_cannot_be_reached_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)


def test_the_llm_pruner_protocol_leaves_something_of_every_group():
    structure = find_groups(tiny_model())
    scores = random_scores(structure)
    with pytest.raises(ValueError, match="unknown protocol 'llmpruner'; choose from engine, llm-pruner"):
        allocate(structure, scores, 0.5, protocol="llmpruner")
    ratios = allocate(structure, scores, 0.99, protocol="llm-pruner")
    with pytest.raises(ValueError, match=r"ratio 0\.99 leaves nothing of layers\.0\.heads, which has 3 units"):
        make_plan(structure, scores, ratios, 0.99, shape="per-layer", protocol="llm-pruner")


def test_a_uniform_plan_refuses_layers_that_differ():
    from pruneengine.structured.apply import compact

    model = tiny_model()
    compact(model, plan(0.4, structure=find_groups(model), shape="per-layer", allocation="global"))
    with pytest.raises(ValueError, match="shape 'uniform' needs layers of equal width"):
        plan(0.3, structure=find_groups(model))


def test_json_round_trip(tmp_path):
    made = plan(0.3, kinds=("heads", "mlp", "layers"), shape="per-layer")
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("keep"), "not a plan"),
        (lambda c: c.update(format="other/1"), "expected a JSON object with format"),
        (lambda c: c["keep"].update({"layers.0.mlp": [3, 2]}), r"layers\.0\.mlp must keep ascending units"),
        (lambda c: c["keep"].update({"layers.0.mlp": [0, 99999]}), "must keep ascending units out of 0..1535"),
        (lambda c: c["keep"].update({"layers.0.heads": []}), "must keep ascending units"),
        (lambda c: c["keep"].pop("layers.0.mlp"), r"group layers\.0\.mlp is missing"),
        (lambda c: c.update(kept_layers=[]), "kept_layers"),
        (lambda c: c.update(colour="red"), "not a plan"),
        (lambda c: c.update(shape="pyramid"), "unknown shape 'pyramid'"),
        (lambda c: c.update(units={"foo": 3}), "'foo' is no group's name"),
        (lambda c: c["keep"].update({"layers.0.mlp": [0.5, 1.5]}), "must be whole numbers"),
        (lambda c: c.update(params_after=-3), "must be whole numbers from 0"),
        (lambda c: c.update(reached=9), "do not fit together"),
    ],
)
def test_a_damaged_plan_is_refused(change, message):
    content = json.loads(plan(0.3).to_json())
    change(content)
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps(content))


def test_a_file_that_is_no_plan(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json: not a plan"):
        Plan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text('{"format": "pruneengine.sparse_plan/1"}')
    with pytest.raises(ValueError, match=r"plan\.json: not a plan.* got format 'pruneengine\.sparse_plan/1'"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="cannot be read as a plan"):
        Plan.load(tmp_path / "absent.json")


def test_scores_of_a_real_metric_make_a_plan():
    model = tiny_model()
    structure = find_groups(model)
    scores = score(model, "magnitude_l2")
    made = make_plan(structure, scores, allocate(structure, scores, 0.4), 0.4)
    weakest = scores.groups["layers.0.heads"].argmin().item()
    assert weakest not in made.keep["layers.0.heads"]


def plan_of_width(width, ratio, round_to, shape="uniform"):
    model = tiny_model(intermediate_size=width)
    structure = find_groups(model)
    scores = score(model, "magnitude_l1", structure=structure, kinds=("mlp",))
    ratios = allocate(structure, scores, ratio, kinds=("mlp",))
    plan = make_plan(structure, scores, ratios, ratio, kinds=("mlp",), shape=shape, round_to=round_to)
    return plan, rounding_warning(plan, structure, round_to)


@pytest.mark.parametrize(
    ("width", "ratio", "round_to", "kept"),
    [(160, 0.15, 128, 128), (160, 0.5, 128, 128), (96, 0.4, 32, 64), (100, 0.3, 32, 64), (100, 0.03, 1, 97)],
)
def test_the_nearest_legal_width_stays(width, ratio, round_to, kept):
    plan, _ = plan_of_width(width, ratio, round_to)
    assert {len(units) for name, units in plan.keep.items() if name.endswith("mlp")} == {kept}


@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
def test_keeping_all_is_nearer_than_a_multiple_far_below(shape):
    with pytest.raises(ValueError, match=r"ratio 0\.02"):
        plan_of_width(160, 0.02, 128, shape)


def test_a_target_that_no_width_comes_near_is_said():
    _, line = plan_of_width(100, 0.3, 32)
    assert line is None
    _, line = plan_of_width(40, 0.9, 32)
    assert line == (
        "asked to remove 90.00%, the plan removes 20.00%: no nearer width is one of multiples of 32 MLP channels"
    )
