"""Values of a wrong type, as a recipe may hold them: every config refuses them by an error of ours."""

import dataclasses

import pytest

from pruneengine import AdaPrunerConfig, DsaConfig, PruneConfig, RecoverConfig, SparseConfig
from pruneengine.common.errors import PruneengineError
from pruneengine.common.recipes import read_recipe

GIVEN = {
    PruneConfig: {"ratio": 0.3},
    SparseConfig: {"sparsity": 0.5},
    AdaPrunerConfig: {"ratio": 0.3},
    DsaConfig: {"sparsity": 0.5},
    RecoverConfig: {"data": "builtin"},
}
FIELDS = [(kind, field.name) for kind in GIVEN for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_no_value_of_a_field_is_a_fault_of_the_config(kind, name):
    refused = 0
    for value in ("abc", 3, 1.5, True, None, [1], [None], {"a": 1}, float("nan")):
        try:
            kind.from_dict(GIVEN[kind] | {name: value})
        except PruneengineError:
            refused += 1
    assert refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.5, "ignore": 3}, "ignore must be names, comma separated or in a list, got 3"),
        ({"sparsity": 0.5, "ignore": [3]}, r"ignore must be names, comma separated or in a list, got \[3\]"),
        ({"sparsity": 0.5, "method": ["wanda"]}, r"unknown method \['wanda'\]"),
    ],
)
def test_the_field_and_the_value_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SparseConfig.from_dict(options)


def test_a_section_of_a_recipe_that_holds_no_options_is_refused(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "recipe.yaml").write_text("config:\n")
    with pytest.raises(PruneengineError, match="config holds NoneType, expected keys and values"):
        read_recipe(tmp_path / "recipe.yaml", "config")
