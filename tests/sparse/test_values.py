"""The values of sparse pruning: patterns, matrices and the config."""

import json
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneengine.model import find_groups, get_linear
from pruneengine.sparse.config import METHODS, MODES, SparseConfig
from pruneengine.sparse.matrices import check_columns, find_matrices, of_layers
from pruneengine.sparse.pattern import Pattern
from tests.helpers.tiny import VARIANTS, tiny_model

MODEL = tiny_model()
STRUCTURE = find_groups(MODEL)
MATRICES = find_matrices(MODEL, STRUCTURE)
TOTAL = sum(matrix.numel for matrix in MATRICES)


@given(n=st.integers(1, 31), m=st.integers(2, 32))
def test_a_pattern_is_read_and_printed(n, m):
    if n >= m:
        with pytest.raises(ValueError, match=f"'{n}:{m}' keeps {n} of {m}: expected 0 < N < M"):
            Pattern.parse(f"{n}:{m}")
        return
    pattern = Pattern.parse(f"{n}:{m}")
    assert str(pattern) == f"{n}:{m}"
    assert pattern.grouped
    assert (pattern.n, pattern.m) == (n, m)
    assert pattern.sparsity == pytest.approx(1 - n / m)


def test_an_unstructured_pattern():
    pattern = Pattern.parse("unstructured")
    assert pattern == Pattern()
    assert not pattern.grouped
    assert pattern.sparsity is None
    assert str(pattern) == "unstructured"


@pytest.mark.parametrize("text", ["2/4", "2:4:8", "", "-1:4", "2:", "two:four", " 2:4", "2.0:4", None, 24])
def test_what_is_no_pattern(text):
    with pytest.raises(ValueError, match="expected unstructured, or N:M such as 2:4"):
        Pattern.parse(text)


@pytest.mark.parametrize("text", ["0:4", "4:4", "5:4"])
def test_a_pattern_keeps_some_and_removes_some(text):
    with pytest.raises(ValueError, match="expected 0 < N < M"):
        Pattern.parse(text)


def test_groups_have_a_limit():
    assert Pattern.parse("16:32").m == 32
    with pytest.raises(ValueError, match="groups of at most 32 weights, got 33"):
        Pattern.parse("16:33")


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrices_are_all_linears_but_the_head_in_the_order_of_computation(variant):
    model = tiny_model(variant)
    found = find_matrices(model, find_groups(model))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    linears.pop("lm_head", None)
    assert {matrix.name for matrix in found} == set(linears)
    assert len(found) == len(linears)
    assert all((matrix.rows, matrix.columns) == tuple(linears[matrix.name].weight.shape) for matrix in found)
    assert all(matrix.numel == linears[matrix.name].weight.numel() for matrix in found)
    assert [matrix.name.rsplit(".", 1)[1] for matrix in found[:7]] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert [matrix.layer for matrix in found] == [0] * 7 + [1] * 7 + [2] * 7
    assert {layer: len(members) for layer, members in of_layers(found).items()} == {0: 7, 1: 7, 2: 7}


def test_the_site_is_what_the_matrix_reads():
    channels = {site.name: site.channels for site in STRUCTURE.sites}
    assert all(channels[matrix.site] == matrix.columns for matrix in MATRICES)
    assert len({matrix.site for matrix in MATRICES if matrix.layer == 0}) == 4


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        (("down_proj",), 18),
        (("model.layers.1.mlp.up_proj",), 20),
        (("layers.0.self_attn.q_proj", "down_proj"), 17),
        (("re:self_attn",), 9),
        ((r"re:layers\.[02]\.",), 7),
    ],
)
def test_what_is_ignored_stays_dense(ignore, left):
    found = find_matrices(MODEL, STRUCTURE, ignore)
    assert len(found) == left
    assert set(found) < set(MATRICES)


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        (("proj",), "ignore 'proj' matches none of the linears, such as model.layers.0.self_attn.q_proj"),
        (("down_proj", "lm_head"), "ignore 'lm_head' matches none"),
        (("re:layers",), "ignore re:layers leaves no linear to prune"),
        (("re:(",), r"ignore 're:\(': no regular expression"),
    ],
)
def test_an_ignore_that_cannot_be_meant(ignore, message):
    with pytest.raises(ValueError, match=message):
        find_matrices(MODEL, STRUCTURE, ignore)


def test_columns_in_whole_groups():
    check_columns(MATRICES, 4)
    with pytest.raises(ValueError, match=r"groups of 8 .*q_proj \(60\), .* and 11 more. Leave them dense") as error:
        check_columns(MATRICES, 8)
    assert "down_proj" not in str(error.value)
    check_columns([matrix for matrix in MATRICES if matrix.columns == 72], 8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_a_config_survives_a_recipe(method, mode):
    config = SparseConfig(method, 0.6, allocation="owl", spread=0.1, mode=mode, ignore=("down_proj",), nsamples=4)
    assert SparseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert set(config.to_dict()) == {field.name for field in fields(SparseConfig)}


def test_a_pattern_says_the_sparsity():
    assert SparseConfig(pattern="2:4").sparsity == 0.5
    assert SparseConfig(pattern="1:4", sparsity=0.75).sparsity == 0.75
    assert SparseConfig(sparsity=0.5, ignore="up_proj, down_proj").ignore == ("up_proj", "down_proj")
    assert SparseConfig(sparsity=0.5, ignore="").ignore == ()


@pytest.mark.parametrize(
    ("options", "compared"),
    [
        ({"method": "wanda"}, "row"),
        ({"method": "magnitude"}, "matrix"),
        ({"method": "sparsegpt"}, "block"),
        ({"method": "wanda", "compare": "matrix"}, "matrix"),
        ({"method": "wanda", "compare": "layer", "mode": "two-pass"}, "layer"),
        ({"method": "magnitude", "compare": "layer"}, "layer"),
        ({"method": "sparsegpt", "pattern": "2:4"}, "group"),
    ],
)
def test_whose_weights_compete(options, compared):
    assert SparseConfig(sparsity=0.5, **options).compared == compared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": None}, "sparsity is missing: expected a fraction"),
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must lie in \[0, 1\), got -0.1"),
        ({"sparsity": math.nan}, r"sparsity must lie in \[0, 1\), got nan"),
        ({"pattern": "2:8"}, "pattern 2:8 has sparsity 0.75, got 0.5; leave it out"),
        ({"pattern": "8:4"}, "keeps 8 of 4"),
        ({"method": "obs"}, "unknown method 'obs'; choose from magnitude, wanda, sparsegpt"),
        ({"mode": "greedy"}, "unknown mode 'greedy'"),
        ({"compare": "column"}, "unknown compare 'column'"),
        ({"method": "sparsegpt", "compare": "row"}, "sparsegpt compares within blocks of columns"),
        ({"pattern": "2:4", "compare": "row"}, "every group of 4 is its own"),
        ({"compare": "layer"}, "mode 'two-pass' or 'one-shot', got 'sequential'"),
        ({"damp": 0.0}, "damp must be positive and finite, got 0.0"),
        ({"damp": float("nan")}, "damp must be positive and finite, got nan"),
        ({"outlier": -1}, "outlier must be positive and finite, got -1"),
        ({"sparsity": 0.995, "allocation": "owl"}, "leave every layer at least 1% of its weights"),
        ({"spread": 0.6}, r"spread must lie in \[0, 0.5\], got 0.6"),
        ({"spread": -0.1}, r"spread must lie in \[0, 0.5\], got -0.1"),
        ({"block": 0}, "block must be a positive whole number, got 0"),
        (
            {"method": "sparsegpt", "block": 130, "pattern": "2:4"},
            "block must be a multiple of the pattern's 4, got 130",
        ),
        ({"seqlen": 1.5}, "seqlen must be a positive whole number, got 1.5"),
        ({"batch_size": True}, "batch_size must be a positive whole number, got True"),
        ({"nsamples": 0}, "nsamples must be a positive whole number, got 0"),
    ],
)
def test_values_that_a_config_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SparseConfig(**({"sparsity": 0.5} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": "0.5"}, "sparsity must be a number, got '0.5'"),
        ({"spread": True}, "spread must be a number, got True"),
        ({"damp": None}, "damp must be a number, got None"),
        ({"seed": 1.0}, "seed must be int, got 1.0"),
        ({"allocation": 3}, "allocation must be str, got 3"),
        ({"pack": 1}, "pack must be bool, got 1"),
    ],
)
def test_types_that_a_config_refuses(options, message):
    with pytest.raises(TypeError, match=message):
        SparseConfig(**({"sparsity": 0.5} | options))


def test_a_recipe_with_a_key_too_many():
    with pytest.raises(ValueError, match="unknown option 'sparse'; known: allocation, batch_size"):
        SparseConfig.from_dict({"sparsity": 0.5, "sparse": 1})


def test_linears_have_the_shapes_of_their_matrices():
    assert all(get_linear(MODEL, m.name).weight.shape == (m.rows, m.columns) for m in MATRICES)
