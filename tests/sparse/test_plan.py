"""Plans of sparse pruning: counts that are exact, files, and what is no plan."""

import json
import math
import re
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneengine.model import find_groups
from pruneengine.sparse.allocations.allocate import allocate_sparsities
from pruneengine.sparse.config import METHODS, SparseConfig
from pruneengine.sparse.matrices import Matrix, find_matrices
from pruneengine.sparse.pattern import Pattern
from pruneengine.sparse.plan import SparsePlan, make_sparse_plan
from tests.helpers.tiny import tiny_model

MODEL = tiny_model()
STRUCTURE = find_groups(MODEL)
MATRICES = find_matrices(MODEL, STRUCTURE)
TOTAL = sum(matrix.numel for matrix in MATRICES)


def even(sparsity, matrices=MATRICES):
    return {matrix.name: sparsity for matrix in matrices}


def plan_of(sparsity=0.5, matrices=MATRICES, **options):
    options = {"method": "wanda", "allocation": "uniform"} | options
    return make_sparse_plan("llama", matrices, even(sparsity, matrices), sparsity, **options)


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
