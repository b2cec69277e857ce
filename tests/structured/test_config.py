"""Configurations are checked where they are made, and survive a recipe."""

import dataclasses

import pytest

from pruneengine.common.recipes import read_recipe
from pruneengine.structured.config import PruneConfig


def test_recipe_round_trip(tmp_path):
    import yaml

    config = PruneConfig(method="wanda", ratio=0.35, structure=("mlp",), layers=(2, 8), round_to=16, seed=3)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert PruneConfig.from_dict(read_recipe(path)) == config
    path.write_text(yaml.safe_dump({"config": config.to_dict(), "versions": {"torch": "2"}}))
    assert PruneConfig.from_dict(read_recipe(path)) == config


def test_the_shape_follows_from_what_is_asked():
    assert PruneConfig().final_shape == "uniform"
    assert PruneConfig(layers=(1, 2)).final_shape == "per-layer"
    assert PruneConfig(protocol="llm-pruner").final_shape == "per-layer"
    assert PruneConfig(structure=("layers",), layers=(1, 9)).final_shape == "uniform"
    # Nobody asked for uniform, so a later change of layers may still decide.
    assert dataclasses.replace(PruneConfig(ratio=0.3), layers=(1, 2)).final_shape == "per-layer"


def test_text_forms_of_a_command_line():
    config = PruneConfig(structure="mlp,heads", layers="4:28")
    assert (config.structure, config.layers) == (("mlp", "heads"), (4, 28))


def test_llm_pruner_protects_the_first_four_and_last_two_layers():
    assert PruneConfig(protocol="llm-pruner").layer_range(32) == range(4, 30)
    assert PruneConfig(layers=(3, 31)).layer_range(32) == range(3, 31)
    assert PruneConfig().layer_range(32) == range(32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, r"ratio must lie in \(0, 1\), got 1\.0"),
        ({"ratio": 0.0}, r"ratio must lie in \(0, 1\), got 0\.0"),
        ({"ratio": float("nan")}, r"ratio must lie in \(0, 1\), got nan"),
        ({"method": "taylor"}, "unknown method 'taylor'; choose from random, magnitude_l1"),
        ({"structure": ("mlp", "neurons")}, "kinds must be one or more of heads, mlp, layers"),
        ({"structure": ()}, "kinds must be one or more"),
        ({"allocation": "owl"}, "unknown allocation 'owl'; choose from uniform, global"),
        ({"shape": "round"}, "unknown shape 'round'; choose from uniform, per-layer"),
        ({"protocol": "paper"}, "unknown protocol 'paper'; choose from engine, llm-pruner"),
        ({"layers": (4, 4)}, "layers must be first:end with 0 <= first < end, got 4:4"),
        ({"layers": "48"}, "layers must be first:end, two whole numbers, got '48'"),
        ({"layers": (0, 4), "shape": "uniform"}, "layers 0:4 leaves layers of different width"),
        ({"protocol": "llm-pruner", "structure": ("layers",)}, "kinds must not name layers"),
        ({"nsamples": 0}, "nsamples must be a positive whole number, got 0"),
        ({"round_to": 2.5}, r"round_to must be a positive whole number, got 2\.5"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PruneConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": "20%"}, "ratio must be a number, got '20%'"),
        ({"seed": "x"}, "seed must be int, got 'x'"),
        ({"calibration": 5}, "calibration must be str, got 5"),
        ({"pack": 1}, "pack must be bool, got 1"),
    ],
)
def test_wrong_types_are_named(options, message):
    with pytest.raises(TypeError, match=message):
        PruneConfig(**options)


def test_layers_beyond_the_model():
    with pytest.raises(ValueError, match="layers 4:30 go beyond the model's 12 layers"):
        PruneConfig(layers=(4, 30)).layer_range(12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "a recipe holds keys and values, got list"),
        ("a: [", "cannot be read as a recipe"),
        ("rato: 0.2", "unknown option 'rato'"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        PruneConfig.from_dict(read_recipe(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize("text", ["1e-1", "1.e-1", "+1E-01", "0.1"])
def test_a_number_is_one_however_it_is_written(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(f"ratio: {text}")
    assert PruneConfig.from_dict(read_recipe(tmp_path / "recipe.yaml")).ratio == 0.1


def test_a_missing_recipe(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a recipe"):
        read_recipe(tmp_path / "absent.yaml")


def test_kinds_go_by_their_former_name_too(tmp_path):
    config = PruneConfig("wanda", 0.3, ("mlp",))
    assert PruneConfig(method="wanda", ratio=0.3, structure="mlp") == config
    assert (config.kinds, config.structure) == (("mlp",), ("mlp",))
    for key in ("kinds", "structure"):
        (tmp_path / "recipe.yaml").write_text(f"method: wanda\nratio: 0.3\n{key}: [mlp]\n")
        assert PruneConfig.from_dict(read_recipe(tmp_path / "recipe.yaml")) == config
    # What stands later, as an option of the command line does, counts.
    assert PruneConfig.from_dict({"kinds": "heads", "structure": "mlp"}).kinds == ("mlp",)
    assert "kinds" not in config.to_dict()
    assert dataclasses.replace(config, structure=("heads",)) == dataclasses.replace(config, kinds=("heads",))


def test_recipes_keep_their_order():
    names = list(PruneConfig().to_dict())
    assert names[:3] == ["method", "ratio", "structure"]
    assert names[-11:-5] == ["calibration", "nsamples", "seqlen", "pack", "batch_size", "seed"]
    assert all(name.startswith("hywia_") for name in names[-5:])
