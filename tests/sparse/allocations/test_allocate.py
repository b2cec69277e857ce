"""Allocations against float64 formulas: the mean, the bounds, the order of layers, and every error."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pruneengine.model import get_linear
from pruneengine.sparse.allocations.allocate import allocate_sparsities, needs_statistics
from pruneengine.sparse.allocations.parse import NAMES
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.functions.function import PUBLISHED, Function
from pruneengine.sparse.matrices import of_layers
from pruneengine.sparse.pattern import Pattern
from pruneengine.sparse.plan import make_sparse_plan
from pruneengine.sparse.prune import sparsify
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_scores import MATRICES, MODEL, STATISTICS, UNEQUAL, mean_of, scores_of


def allocated(allocation, sparsity=0.6, matrices=MATRICES, statistics=STATISTICS, model=MODEL, **options):
    config = SparseConfig(sparsity=sparsity, allocation=str(allocation), **options)
    return allocate_sparsities(model, matrices, config, statistics)


def by_layer(found, matrices=MATRICES):
    return [found.sparsities[members[0].name] for members in of_layers(matrices).values()]


ALL = (*NAMES, "abs | std | no", "abslog | mean | no | -", "W:(ABS)-(VAR)-(NO_OP)-(9)")


@pytest.mark.parametrize("allocation", ALL)
@pytest.mark.parametrize("matrices", [MATRICES, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9])
def test_every_allocation_meets_the_mean_in_its_bounds(allocation, matrices, sparsity):
    if allocation == "er-plus" and sparsity == 0.9:
        return er_plus_is_out_of_reach(matrices, sparsity)
    found = allocated(allocation, sparsity, matrices)
    assert found.sparsities.keys() == {matrix.name for matrix in matrices}
    assert abs(mean_of(found.sparsities, matrices) - sparsity) < 1e-12
    assert all(0 <= value <= 0.99 for value in found.sparsities.values())
    assert found.words.startswith("function" if allocation not in NAMES else allocation)
    assert not found.warnings
    assert (len(set(found.sparsities.values())) == 1) == (allocation == "uniform")
    plan = make_sparse_plan("llama", matrices, found.sparsities, sparsity, method="wanda", allocation=found.words)
    assert sum(plan.removed.values()) == round(sparsity * sum(matrix.numel for matrix in matrices))


def er_plus_is_out_of_reach(matrices, sparsity):
    with pytest.raises(ValueError, match=r"sparsity 0.9 is out of reach with 7 matrices dense, such as .*expected at"):
        allocated("er-plus", sparsity, matrices)


def test_er_is_the_formula():
    found = allocated("er", 0.6).sparsities
    kept = {matrix.name: (1 - found[matrix.name]) * matrix.numel for matrix in MATRICES}
    epsilon = [kept[m.name] / (m.rows + m.columns) for m in MATRICES if found[m.name] > 0]
    assert epsilon == pytest.approx([epsilon[0]] * len(epsilon), rel=1e-12)
    # k and v are the smallest, and so the densest.
    assert min(found, key=found.get).endswith(("k_proj", "v_proj"))
    low = allocated("er", 0.05).sparsities
    dense = [m for m in MATRICES if low[m.name] == 0]
    free = [m for m in MATRICES if low[m.name] > 0]
    kept = [(1 - low[m.name]) * m.numel / (m.rows + m.columns) for m in free]
    assert kept == pytest.approx([kept[0]] * len(kept), rel=1e-12)
    assert dense
    assert all(kept[0] * (m.rows + m.columns) >= m.numel for m in dense)


def test_er_plus_leaves_the_last_layer_dense():
    found = allocated("er-plus", 0.5)
    assert found.words == "er-plus, layer 2 dense"
    assert all((found.sparsities[m.name] == 0) == (m.layer == 2) for m in MATRICES)
    rest = [m for m in MATRICES if m.layer < 2]
    expected = allocate_sparsities(MODEL, rest, SparseConfig(sparsity=0.75, allocation="er")).sparsities
    assert {name: found.sparsities[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_global_is_one_threshold(method):
    statistics = None if method == "magnitude" else STATISTICS
    found = allocated("global", 0.6, statistics=STATISTICS, method=method).sparsities
    scores = {m.name: scores_of(m, statistics).double() for m in MATRICES}
    everything = torch.cat(list(scores.values())).sort().values
    bound = everything[round(0.6 * len(everything)) - 1]
    for matrix in MATRICES:
        expected = int((scores[matrix.name] <= bound).sum())
        assert abs(found[matrix.name] * matrix.numel - expected) <= 1.5


def test_equal_scores_at_the_threshold_go_in_equal_parts():
    model = tiny_model()
    with torch.no_grad():
        for matrix in MATRICES:
            weight = get_linear(model, matrix.name).weight
            weight.copy_(torch.where(torch.rand_like(weight) < 0.1 * (1 + matrix.layer), 0.5, -1.0))
    found = allocated("global", 0.6, model=model, statistics=None, method="magnitude").sparsities
    small = {m.name: float((get_linear(model, m.name).weight == 0.5).double().mean()) for m in MATRICES}
    part = {round((found[n] - small[n]) / (1 - small[n]), 12) for n in small}
    assert len(part) == 1
    assert mean_of(found) == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("allocation", ["global", "er", "er-plus"])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.3])
def test_a_bounded_spread(allocation, spread):
    sparsity = 0.2
    if allocation == "er-plus" and spread < 0.1:
        with pytest.raises(ValueError, match=r"allocation er-plus, .* a mean sparsity of 0.2 is out of reach"):
            allocated(allocation, sparsity, spread=spread)
        return
    found = allocated(allocation, sparsity, UNEQUAL, spread=spread)
    kept = [m for m in UNEQUAL if allocation != "er-plus" or m.layer < 2]
    assert all(abs(found.sparsities[m.name] - sparsity) <= spread + 1e-12 for m in kept)
    assert abs(mean_of(found.sparsities, UNEQUAL) - sparsity) < 1e-12
    assert found.words.endswith(f"within {spread:g} of the mean")


@pytest.mark.parametrize("matrices", [MATRICES, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_owl_is_the_formula(matrices, method):
    found = allocated("owl", 0.6, matrices, method=method, outlier=4.0, spread=0.1)
    layers = of_layers(matrices).values()
    blocks = [torch.cat([scores_of(m) for m in members]).double() for members in layers]
    share = np.array([len(block) for block in blocks]) / sum(map(len, blocks))
    outliers = np.array([100 * float((block > 4 * block.mean()).double().mean()) for block in blocks])
    assert list(found.values.values()) == pytest.approx(outliers, abs=0.02)
    m = (outliers - outliers.min()) / np.ptp(outliers)
    keep = (1 - 0.6) + 0.2 * (m - m @ share)
    assert by_layer(found, matrices) == pytest.approx(1 - keep, abs=1e-3)
    assert found.words == "owl, outliers above 4 means, spread 0.1"


def test_functions_move_layers_by_their_values():
    found = allocated("abs | std | no", 0.6)
    values = [
        float(torch.cat([scores_of(m) for m in members]).double().std()) for members in of_layers(MATRICES).values()
    ]
    assert list(found.values.values()) == pytest.approx(values, rel=1e-5)
    m = (np.array(values) - min(values)) / np.ptp(values)
    assert by_layer(found) == pytest.approx(0.6 + 0.16 * (m - m.mean()), abs=1e-5)
    turned = allocated("abs | std | no | -", 0.6)
    assert np.array(by_layer(turned)) - 0.6 == pytest.approx(0.6 - np.array(by_layer(found)), abs=1e-12)
    wider = allocated("abs | std | no", 0.6, spread=0.12)
    assert np.ptp(by_layer(wider)) == pytest.approx(0.24)
    assert by_layer(allocated("dsa", 0.6)) == by_layer(allocated(str(PUBLISHED), 0.6))
    assert by_layer(allocated("dsa", 0.6, method="magnitude")) == by_layer(allocated("dsa", 0.6))


def test_no_spread_and_equal_layers_are_uniform():
    assert set(allocated("owl", spread=0.0).sparsities.values()) == {0.6}
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.load_state_dict(model.model.layers[0].state_dict())
    squares = STATISTICS.tensors["squares"]
    same = {site: squares[f"layers.0.{site.split('.', 2)[2]}"] for site in squares}
    statistics = replace(STATISTICS, tensors={"squares": same})
    for allocation in ("owl", "dsa", "abs | std | no"):
        found = allocated(allocation, model=model, statistics=statistics)
        assert set(found.sparsities.values()) == {0.6}
        assert "do not tell the layers apart, so each gets 0.6" in found.warnings[0]


def test_what_needs_statistics():
    def needs(allocation, method="wanda"):
        return needs_statistics(SparseConfig(method, 0.5, allocation=allocation))

    assert not any(needs(name) for name in ("uniform", "er", "er-plus"))
    assert all(needs(name, "magnitude") for name in ("owl", "dsa", "abs | std | no", "W:(ABS)-(VAR)-(NO_OP)-(9)"))
    assert needs("global")
    assert needs("global", "sparsegpt")
    assert not needs("global", "magnitude")
    with pytest.raises(ValueError, match="allocation 'owl' reads Wanda's scores: it needs statistics"):
        allocated("owl", statistics=None)
    for wrong in ("owls", "x" * 5000, "."):
        with pytest.raises(ValueError, match=r"unknown allocation .*expected uniform, global, er, er-plus, owl, dsa"):
            needs(wrong)
    with pytest.raises(ValueError, match="position"):
        needs("abs | nonsense | no")


def test_a_function_from_a_file(tmp_path):
    path = tmp_path / "found.json"
    Function(("abs",), "std", spread=0.05).save(path)
    found = allocated(path)
    assert found.sparsities == allocated("abs | std | no | λ=0.05").sparsities
    assert needs_statistics(SparseConfig("magnitude", 0.5, allocation=str(path)))


def test_sparsities_from_a_file(tmp_path):
    path = tmp_path / "own.json"
    path.write_text("[0.5, 0.6, 0.7]")
    assert by_layer(allocated(path, statistics=None)) == pytest.approx([0.5, 0.6, 0.7], abs=1e-12)
    first = MATRICES[0].name
    rest = (0.5 * sum(m.numel for m in MATRICES if m.layer == 0) - 0.1 * MATRICES[0].numel) / sum(
        m.numel for m in MATRICES[1:] if m.layer == 0
    )
    path.write_text(json.dumps({first: 0.1, "0": rest, "1": 0.6, "2": 0.7}))
    found = allocated(path, statistics=None)
    assert found.sparsities[first] == pytest.approx(0.1, abs=1e-12)
    assert found.sparsities[MATRICES[1].name] == pytest.approx(rest, abs=1e-12)
    assert found.words == "file own.json"
    assert abs(mean_of(found.sparsities) - 0.6) < 1e-12
    path.write_text("[0.333, 0.333, 0.334]")
    assert abs(mean_of(allocated(path, 1 / 3).sparsities) - 1 / 3) < 1e-12


def first_dense(matrices, rest):
    """Zero for the first layer, and ``rest`` for the others."""
    return {str(layer): 0.0 if layer == 0 else rest for layer in of_layers(matrices)}


@pytest.mark.parametrize("off", [-4.5e-4, -1e-6, 0.0, 4.5e-4])
@pytest.mark.parametrize("matrices", [MATRICES, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("single", [False, True])
def test_what_is_written_as_zero_stays_dense(matrices, off, single):
    dense = {m.name for m in matrices if (m.name == matrices[1].name if single else m.layer == 0)}
    total, free = sum(m.numel for m in matrices), sum(m.numel for m in matrices if m.name not in dense)
    target = 0.41234567
    written = {m.name: 0 if m.name in dense else (target + off) * total / free for m in matrices}
    found = allocated(json.dumps(written), target, matrices).sparsities
    assert {name for name, value in found.items() if value == 0} == dense
    assert abs(mean_of(found, matrices) - target) < 1e-12
    plan = make_sparse_plan("llama", matrices, found, target, method="wanda")
    assert {name for name, count in plan.removed.items() if count == 0} == dense
    assert sum(plan.removed.values()) == round(target * total)
    again = allocated(plan.to_json(), target, matrices).sparsities
    assert make_sparse_plan("llama", matrices, again, target, method="wanda").removed == plan.removed


@pytest.mark.parametrize("compare", ["row", "matrix", "layer"])
def test_a_layer_that_is_written_as_zero_keeps_every_bit(compare):
    model = tiny_model(seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = SparseConfig("magnitude", 0.6, allocation=[0.0, 0.8992, 0.9], compare=compare)
    plan = sparsify(model, None, config).plan
    assert sum(plan.removed.values()) == round(0.6 * sum(matrix.numel for matrix in MATRICES))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{matrix.name}.weight" for matrix in MATRICES if matrix.layer > 0}


def test_a_spread_does_not_touch_what_is_written_as_zero():
    found = allocated("[0, 0.85, 0.95]", spread=0.3).sparsities
    assert sorted({round(value, 12) for value in found.values()}) == [0, 0.9]
    with pytest.raises(ValueError, match=r"0.6 is out of reach: expected .* to 0.533333, with 7 linears dense, such"):
        allocated("[0, 0.85, 0.95]", spread=0.2)
    with pytest.raises(ValueError, match=r"0.6604 is out of reach: expected .* to 0.66, with 7 linears dense, such as"):
        allocated("[0, 0.9902, 0.9902]", 0.6604)
    with pytest.raises(ValueError, match=r"0.0004 is out of reach: expected 0 to 0, with 21 linears dense, such as"):
        allocated("[0, 0, 0]", 0.0004)
    assert set(allocated("[0, 0, 0]", 0.0).sparsities.values()) == {0}


@pytest.mark.parametrize("matrices", [MATRICES, UNEQUAL], ids=["equal", "unequal"])
def test_groups_do_not_touch_what_is_written_as_zero(matrices):
    total = sum(m.numel for m in matrices)
    for dense in ({matrices[1].name}, {m.name for m in matrices if m.layer == 0}):
        free = [m for m in matrices if m.name not in dense]
        share = 0.5 * total / sum(m.numel for m in free)
        written = {m.name: share * (m.name not in dense) for m in matrices}
        found = allocated(json.dumps(written), None, matrices, pattern="4:8").sparsities
        assert {name for name, value in found.items() if value == 0} == dense
        assert all(len({found[m.name] for m in members}) == 1 for members in of_layers(free).values())
        make_sparse_plan("llama", matrices, found, 0.5, method="wanda", pattern=Pattern.parse("4:8"))


def test_groups_that_cannot_make_up_for_what_is_written_as_zero():
    free = sum(m.numel for m in UNEQUAL if m.layer > 0) / sum(m.numel for m in UNEQUAL)
    with pytest.raises(ValueError, match=r"0.5 is out of reach: expected 0 to 0.485294, with 7 linears dense, such as"):
        allocated(json.dumps(first_dense(UNEQUAL, 0.5 / free)), None, UNEQUAL, pattern="2:4")


def test_a_plan_as_an_allocation(tmp_path):
    path = tmp_path / "plan.json"
    plan = make_sparse_plan("llama", MATRICES, allocated("owl").sparsities, 0.6, method="wanda", allocation="owl")
    plan.save(path)
    again = make_sparse_plan("llama", MATRICES, allocated(path, statistics=None).sparsities, 0.6, method="wanda")
    assert again.removed == plan.removed
    with pytest.raises(ValueError, match=r"the plan's sparsity is 0.6, expected 0.5"):
        allocated(path, 0.5)
    with pytest.raises(ValueError, match=r"the plan is of another model: .*down_proj"):
        allocated(path, matrices=UNEQUAL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0.6, 0.6]", "2 sparsities, expected 3, one for each decoder layer"),
        ("[0.6, 0.6, 1.0]", r"layers.2.self_attn.q_proj is 1.0, expected a number in \[0, 1\)"),
        ("[0.6, 0.6, -0.1]", "is -0.1, expected"),
        ('[0.6, 0.6, "x"]', "is 'x', expected"),
        ("[0.6, 0.6, true]", "is True, expected"),
        ("[0.6, 0.6, NaN]", "is nan, expected"),
        ("[0.6, 0.6, 0.5]", "mean over weights is 0.566667, expected 0.6"),
        ('{"0": 0.6, "1": 0.6}', "no sparsity for 7 linears, such as model.layers.2.self_attn.q_proj"),
        ('{"0": 0.6, "1": 0.6, "3": 0.6}', "'3' is neither a linear, such as .* nor one of layers 0 to 2"),
        ("0.6", "expected a list, an object or a plan, got float"),
        ("{", "cannot be read as an allocation"),
        ('{"format": "another"}', "not a sparse plan"),
        ('{"format": "pruneengine.function/1"}', "holds no allocation function"),
    ],
)
def test_files_that_do_not_fit(tmp_path, content, message):
    path = tmp_path / "own.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        allocated(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("allocation", [name for name in ALL if name != "uniform"])
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_whole_numbers_under_groups(allocation, pattern):
    m = Pattern.parse(pattern).m
    target = Pattern.parse(pattern).sparsity
    if allocation == "er-plus" and pattern == "1:4":
        with pytest.raises(ValueError, match="out of reach"):
            allocated(allocation, None, pattern=pattern)
        return
    found = allocated(allocation, None, pattern=pattern, spread=None if allocation[:2] in ("gl", "er") else 0.3)
    for members in of_layers(MATRICES).values():
        removed = {found.sparsities[matrix.name] * m for matrix in members}
        assert len(removed) == 1
        assert removed.pop() in range(m)
    assert mean_of(found.sparsities) == pytest.approx(target, abs=1e-12)
    plan = make_sparse_plan("llama", MATRICES, found.sparsities, target, method="wanda", pattern=Pattern.parse(pattern))
    assert all(plan.sparsity(name) == found.sparsities[name] for name in plan.removed)
    assert plan.reached == pytest.approx(target, abs=1e-12)
    assert bool(found.warnings) == (len(set(found.sparsities.values())) == 1)
    if allocation == "er-plus":
        assert found.sparsities[MATRICES[-1].name] == 0


def test_uniform_groups_are_the_pattern_everywhere():
    assert set(allocated("uniform", None, UNEQUAL, pattern="2:8").sparsities.values()) == {0.75}
