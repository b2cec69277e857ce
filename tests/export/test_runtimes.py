"""Which programs are said to open a model of a given shape: the reasons are those on which an export acts."""

from dataclasses import replace

import pytest

from pruneengine.export.model_shape import model_shape
from pruneengine.export.runtimes import check_deci, gguf_architecture, runtimes
from pruneengine.model import find_groups
from pruneengine.structured.apply import compact
from pruneengine.structured.plan import make_plan
from pruneengine.structured.scores.score import score
from tests.checkpoint.test_write import EQUAL, UNEQUAL, prune_by_hand
from tests.helpers.families import family_model
from tests.helpers.tiny import tiny_model


def shape_of(variant="llama-gqa-tied", widths=EQUAL, **changes):
    return model_shape(prune_by_hand(tiny_model(variant, **changes), widths))


def opens(shape):
    return {f"{way.name}, {way.how}": way.opens for way in runtimes(shape)}


def test_shapes_are_read_from_the_modules():
    shape = shape_of("qwen2-biases", UNEQUAL)
    assert (shape.heads, shape.kv_heads, shape.channels) == ((4, 2, 6), (2, 1, 3), (72, 24, 56))
    assert shape.biases == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    assert not shape.uniform
    assert (shape_of("mistral-sliding").window, shape_of("mistral-sliding", sliding_window=500).window) == (8, None)
    assert shape_of("qwen3-norms").query_norms


def test_a_uniform_model_opens_everywhere():
    assert all(opens(shape_of()).values())
    assert "any that opens the unpruned model, export --format pad" not in opens(shape_of())


def test_vllms_qwen2_may_not_take_other_heads_than_fill_the_hidden_size():
    found = opens(shape_of("qwen2-biases", EQUAL))
    assert found.pop("vLLM, as it is") is None
    assert all(found.values())
    assert all(opens(replace(shape_of("qwen2-biases", EQUAL), heads=(5,) * 3)).values())


def test_a_per_layer_model_needs_an_export():
    found = opens(shape_of(widths=UNEQUAL))
    assert {name for name, yes in found.items() if not yes} == {"transformers, as it is", "vLLM, as it is"}
    reasons = [way.why for way in runtimes(shape_of(widths=UNEQUAL)) if not way.opens]
    assert reasons == ["the layers differ in width"] * 2
    qwen3 = {way.name: way.why for way in runtimes(shape_of("qwen3-norms", UNEQUAL)) if not way.opens}
    assert "deci has no norms" in qwen3["llama.cpp"]
    assert "DeciLM has no norms" in qwen3["vLLM (DeciLM, trust_remote_code)"]


def test_biases_without_a_flag_need_the_modelling_file():
    loose = replace(shape_of(), biases_without_flag=True, biases=frozenset({"mlp.down_proj"}))
    found = opens(loose)
    assert not found["transformers, as it is"]
    assert found["llama.cpp, export --format gguf"]
    one_channel_less = opens(replace(loose, channels=(40, 39, 40)))
    assert not one_channel_less["any that opens the unpruned model, export --format pad"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"activation": "gelu"}, "silu, not 'gelu'"), ({"rope": "yarn"}, "type 'yarn' are not written")],
)
def test_what_llama_cpp_does_not_compute(changes, message):
    with pytest.raises(ValueError, match=message):
        gguf_architecture(replace(shape_of(), **changes))


@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
def test_the_shape_after_a_plan(shape):
    model = tiny_model()
    structure = find_groups(model)
    ratios = {group.name: 0.2 + 0.1 * group.layer for group in structure.groups}
    scores = score(model, "magnitude_l1")
    plan = make_plan(structure, scores, ratios, 0.3, shape=shape)
    after = model_shape(model).after(plan)
    assert after.uniform is (shape == "uniform")
    assert after.channels == tuple(len(plan.keep[f"layers.{i}.mlp"]) for i in range(3))
    assert after.heads == tuple(2 * len(plan.keep[f"layers.{i}.heads"]) for i in range(3))


def test_what_computes_something_else_than_llama_is_told_so():
    gemma = replace(shape_of(), unlike_llama="its norms are others")
    found = {way.name: way for way in runtimes(gemma)}
    assert found["transformers"].opens
    assert found["vLLM"].opens is None
    for name in ("llama.cpp", "vLLM (DeciLM, trust_remote_code)"):
        assert not found[name].opens
        assert found[name].why.endswith(": its norms are others")


def test_positions_that_deci_does_not_hold():
    with pytest.raises(ValueError, match="'longrope' are not written"):
        check_deci(replace(shape_of(), rope="longrope"))


def test_activations_that_deci_does_not_compute():
    with pytest.raises(ValueError, match="silu, not 'gelu'"):
        check_deci(replace(shape_of(), activation="gelu"))


def test_experts_of_equal_number_and_width_are_plain():
    model = family_model("mixtral")
    shape, structure = model_shape(model), find_groups(model)
    assert shape.uniform
    assert not shape.one_channel_less.uniform
    scores = score(model, "magnitude_l1", structure=structure)
    for lost, plain in (((1, 1, 1), True), ((1, 0, 2), False)):
        ratios = {f"layers.{layer}.experts": count / 4 for layer, count in enumerate(lost)}
        plan = make_plan(structure, scores, ratios, 0.3, kinds=("experts",), shape="per-layer")
        after = shape.after(plan)
        assert [len(widths) for widths in after.experts] == [4 - count for count in lost]
        assert runtimes(after)[0].opens is plain
        assert not any(way.opens for way in runtimes(after)[3:])


def test_rotary_positions_on_a_part_of_each_head():
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    assert "turn 0.5 of each head" in shape_of(rope_parameters=rope).unlike_llama


def test_widths_that_the_config_cannot_say():
    model = family_model("opt")
    before = model_shape(model)
    assert (before.kinds_without_config_name, before.not_plain) == (("heads",), None)
    compact(model, plan := uniform_plan(model, ("heads", "mlp")))
    assert model_shape(model) == before.after(plan)
    assert model_shape(model).not_plain == "the config has no name for widths of heads"
    compact(model := family_model("opt"), plan := uniform_plan(model, ("mlp",)))
    assert model_shape(model) == before.after(plan)
    assert model_shape(model).not_plain is None


def uniform_plan(model, kinds):
    structure = find_groups(model)
    ratios = {group.name: 0.3 for group in structure.of_kind(kinds)}
    return make_plan(structure, score(model, "magnitude_l1"), ratios, 0.3, kinds=kinds)
