"""The values of sparse pruning: patterns, matrices, the config, and plans whose counts are exact."""

import json
import math
import re
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneengine.sparse.allocations.allocate import allocate_sparsities
from pruneengine.sparse.config import METHODS, MODES, SparseConfig
from pruneengine.sparse.matrices import Matrix, check_columns, find_matrices, of_layers
from pruneengine.sparse.pattern import Pattern
from pruneengine.sparse.plan import SparsePlan, make_sparse_plan
from pruneengine.structure import find_groups, get_linear
from tests.tiny import VARIANTS, tiny_model

MODEL = tiny_model()
STRUCTURE = find_groups(MODEL)
MATRICES = find_matrices(MODEL, STRUCTURE)
TOTAL = sum(matrix.numel for matrix in MATRICES)


def even(sparsity, matrices=MATRICES):
    return {matrix.name: sparsity for matrix in matrices}


def plan_of(sparsity=0.5, matrices=MATRICES, **options):
    options = {"method": "wanda", "allocation": "uniform"} | options
    return make_sparse_plan("llama", matrices, even(sparsity, matrices), sparsity, **options)


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


@settings(max_examples=100, deadline=None)
@given(sparsity=st.floats(0, 1, exclude_max=True))
def test_uniform_counts_add_up_to_the_weight(sparsity):
    plan = plan_of(sparsity)
    assert sum(plan.removed.values()) == round(sparsity * TOTAL)
    assert plan.reached == sum(plan.removed.values()) / TOTAL
    assert plan.asked == sparsity
    for matrix in MATRICES:
        assert 0 <= plan.removed[matrix.name] <= matrix.numel
        assert abs(plan.removed[matrix.name] - sparsity * matrix.numel) < 1
        assert plan.sparsity(matrix.name) == plan.removed[matrix.name] / matrix.numel


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(1, 9))
def test_any_counts_add_up_to_the_weight(data, count):
    shapes = [(data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))) for _ in range(count)]
    matrices = [Matrix(f"m{i}", i // 2, "", rows, columns) for i, (rows, columns) in enumerate(shapes)]
    sparsities = {matrix.name: data.draw(st.floats(0, 1, exclude_max=True)) for matrix in matrices}
    total = sum(matrix.numel for matrix in matrices)
    asked = math.fsum(sparsities[matrix.name] * matrix.numel for matrix in matrices) / total
    plan = make_sparse_plan("x", matrices, sparsities, asked, method="magnitude")
    assert sum(plan.removed.values()) == round(asked * total)
    assert all(abs(plan.removed[m.name] - sparsities[m.name] * m.numel) < 1 + 1e-6 for m in matrices)


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:4", "1:2", "7:12"])
def test_groups_keep_n_of_m(text):
    pattern = Pattern.parse(text)
    plan = plan_of(pattern.sparsity, pattern=pattern)
    assert all(plan.kept_of_group(matrix.name) == pattern.n for matrix in MATRICES)
    assert plan.reached == pytest.approx(pattern.sparsity, abs=1e-15)
    assert SparsePlan.from_json(plan.to_json()) == plan


def test_a_mean_that_is_not_the_target():
    with pytest.raises(ValueError, match=r"the sparsities' mean over weights is 0.5, expected 0.500001"):
        make_sparse_plan("llama", MATRICES, even(0.5), 0.500001, method="wanda")
    # Half a weight of four of the largest of three equal layers: 1/24.
    for sparsity in (0.5 + 0.04, 0.5 - 0.04):
        make_sparse_plan("llama", MATRICES, even(0.5), sparsity, method="wanda", pattern=Pattern(2, 4))
    with pytest.raises(ValueError, match=r"mean over weights is 0.5, expected 0.55"):
        make_sparse_plan("llama", MATRICES, even(0.5), 0.55, method="wanda", pattern=Pattern(2, 4))


def test_groups_of_unequal_layers_stay_as_they_are_and_say_what_they_reach():
    matrices = [Matrix("a", 0, "", 10, 8), Matrix("b", 1, "", 13, 8)]
    plan = make_sparse_plan("x", matrices, {"a": 0.75, "b": 0.25}, 0.5, method="wanda", pattern=Pattern(2, 4))
    assert plan.removed == {"a": 60, "b": 26}
    assert plan.asked == 0.5
    assert plan.reached == pytest.approx(86 / 184)


@settings(max_examples=30, deadline=None)
@given(sparsity=st.floats(0, 0.99), method=st.sampled_from(METHODS))
def test_a_plan_survives_json(sparsity, method):
    plan = plan_of(sparsity, method=method, allocation="owl, outliers above 5 means, spread 0.08")
    assert SparsePlan.from_json(plan.to_json()) == plan
    assert len(plan.to_json().splitlines()) < 2 * len(MATRICES) + 20


def test_a_plan_survives_a_file(tmp_path):
    plan_of().save(tmp_path / "folder" / "plan.json")
    assert SparsePlan.load(tmp_path / "folder" / "plan.json").check(MATRICES) == plan_of()
    with pytest.raises(ValueError, match="cannot be read as a sparse plan"):
        SparsePlan.load(tmp_path / "absent.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read as a sparse plan"):
        SparsePlan.load(tmp_path / "binary")


def test_a_plan_of_another_model():
    other = tiny_model("llama-mha-untied")
    with pytest.raises(ValueError, match=r"the plan is of another model: .*(k|v)_proj is \(36, 60\) there and \(72"):
        plan_of().check(find_matrices(other, find_groups(other)))
    with pytest.raises(ValueError, match=r"layers.2.mlp.up_proj is .* there and missing here \(is ignore the same\?\)"):
        plan_of().check([matrix for matrix in MATRICES if not matrix.name.endswith("layers.2.mlp.up_proj")])


@pytest.mark.parametrize(
    "change",
    [
        {"format": "pruneengine.sparse_plan/2"},
        {"removed": {}},
        {"removed": None},
        {"shapes": {"a": 3}},
        {"shapes": [1, 2]},
        {"pattern": "4:2"},
        {"unknown": 1},
    ],
)
def test_what_is_no_plan(change):
    content = json.loads(plan_of().to_json()) | change
    with pytest.raises(ValueError, match=r"not a sparse plan|is not in both|keeps 4 of 2"):
        SparsePlan.from_json(json.dumps(content))


FIRST = MATRICES[0].name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asked": "0.5"}, "asked must be a number, got '0.5'"),
        ({"asked": None}, "asked must be a number, got None"),
        ({"asked": 1.5}, "asked must lie in [0, 1], got 1.5"),
        ({"asked": math.nan}, "asked must lie in [0, 1], got nan"),
        ({"reached": True}, "reached must be a number, got True"),
        ({"pattern": 2}, "pattern 2: expected unstructured, or N:M"),
        ({"pattern": None}, "pattern None: expected unstructured, or N:M"),
        ({"model_type": None}, "model_type must be a text, got None"),
        ({"method": ["wanda"]}, "method must be a text, got ['wanda']"),
        ({"allocation": 3}, "allocation must be a text, got 3"),
        ({"shapes": [1, 2]}, "shapes must be an object by linear, got [1, 2]"),
        ({"removed": 5}, "removed must be an object by linear, got 5"),
        ({"shapes": {FIRST: 3}}, f"shapes of {FIRST} must be [rows, columns], got 3"),
        ({"shapes": {FIRST: [3]}}, f"shapes of {FIRST} must be [rows, columns], got [3]"),
        ({"shapes": {FIRST: [3, "4"]}}, f"shapes of {FIRST} must be positive whole numbers, got '4'"),
        ({"shapes": {FIRST: [3, 4.5]}}, f"shapes of {FIRST} must be positive whole numbers, got 4.5"),
        ({"shapes": {FIRST: [0, 4]}}, f"shapes of {FIRST} must be positive whole numbers, got 0"),
        ({"removed": {FIRST: "5"}}, f"removed of {FIRST} must be a whole number of weights, got '5'"),
        ({"removed": {FIRST: -1}}, f"removed of {FIRST} must be a whole number of weights, got -1"),
        ({"removed": {FIRST: 5.5}}, f"removed of {FIRST} must be a whole number of weights, got 5.5"),
        ({"unknown": 1}, "unknown field 'unknown'; known: model_type, method, pattern"),
    ],
    ids=str,
)
def test_a_plan_says_which_field_is_wrong(tmp_path, change, message):
    content = json.loads(plan_of().to_json())
    content |= {name: content[name] | value if isinstance(value, dict) else value for name, value in change.items()}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    for read in (SparsePlan.load, lambda path: allocate_sparsities(MODEL, MATRICES, of_file(path))):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


def of_file(path):
    return SparseConfig("magnitude", 0.5, allocation=str(path))


@pytest.mark.parametrize("name", [field.name for field in fields(SparsePlan)])
def test_a_plan_without_a_field(name):
    content = json.loads(plan_of().to_json())
    del content[name]
    with pytest.raises(ValueError, match=f"^not a sparse plan: {name} is missing$"):
        SparsePlan.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_what_is_no_json_object(text):
    with pytest.raises(ValueError, match="not a sparse plan"):
        SparsePlan.from_json(text)


def test_a_plan_whose_groups_lose_unlike_numbers():
    plan = plan_of(0.5, pattern=Pattern.parse("2:4"))
    name = MATRICES[3].name
    broken = replace(plan, removed=plan.removed | {name: plan.removed[name] + 1})
    with pytest.raises(ValueError, match=rf"{name} loses 2161 weights, which are not as many of each 4"):
        SparsePlan.from_json(broken.to_json())


def test_a_plan_that_contradicts_itself():
    plan, count = plan_of(), 10**9
    name = MATRICES[3].name
    broken = replace(plan, removed=plan.removed | {name: count})
    with pytest.raises(ValueError, match=rf"{name} of \(60, 72\) loses {count} weights"):
        SparsePlan.from_json(broken.to_json())


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
