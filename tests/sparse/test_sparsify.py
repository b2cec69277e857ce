"""sparsify(): exact counts, what is left alone, how often a layer runs, and what is refused."""

import collections
import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

import pruneengine
from pruneengine.common.progress import Stopwatch
from pruneengine.model import find_groups
from pruneengine.sparse.prune import carry_out, decide
from tests.helpers.tiny import VARIANTS, logits, tiny_model, tiny_tokens

METHODS = ("magnitude", "wanda", "sparsegpt")
MODES = ("sequential", "two-pass", "one-shot")
TOKENS = tiny_tokens(5, 16)


def linears(model):
    return {p: m.weight.detach() for p, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in p}


def sparsified(model, batches=TOKENS, **options):
    report = pruneengine.sparsify(model, batches, pruneengine.SparseConfig(**({"block": 24} | options)))
    return linears(model), report


def zeros(weights):
    return {name: int((weight == 0).sum()) for name, weight in weights.items()}


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:6"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_exactly_the_planned_weights_become_zero(method, mode, pattern):
    sparsity = 0.43 if pattern == "unstructured" else None
    model = tiny_model("llama-biases", dtype=torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    weights, report = sparsified(model, method=method, mode=mode, pattern=pattern, sparsity=sparsity, batch_size=2)
    assert zeros(weights) == report.plan.removed
    total = sum(weight.numel() for weight in weights.values())
    assert sum(report.plan.removed.values()) == round(report.config.sparsity * total)
    for weight in weights.values():
        assert weight.dtype == torch.bfloat16
        assert not torch.signbit(weight[weight == 0]).any()
        if pattern != "unstructured":
            kept, group = map(int, pattern.split(":"))
            assert ((weight.unflatten(1, (-1, group)) != 0).sum(2) == kept).all()
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in weights:
            assert torch.equal(tensor, before[name]), name
    assert logits(model, TOKENS).isfinite().all()
    assert report.warnings == ()
    assert f"{sum(report.plan.removed.values()):,} of {total:,} weights in 21 matrices removed" in str(report)


@pytest.mark.parametrize("compare", ["row", "matrix", "layer"])
@pytest.mark.parametrize(
    ("method", "mode"), [("magnitude", "sequential"), ("wanda", "two-pass"), ("wanda", "one-shot")]
)
def test_who_competes_with_whom(method, mode, compare):
    weights, report = sparsified(tiny_model(), method=method, mode=mode, compare=compare, sparsity=0.43)
    found = zeros(weights)
    assert found == report.plan.removed
    shares = {name: round(count / weights[name].numel(), 2) for name, count in found.items()}
    assert (set(shares.values()) != {0.43}) == (compare == "layer")
    for layer in range(3):
        mine = [name for name in weights if f".layers.{layer}." in name]
        assert sum(found[name] for name in mine) == pytest.approx(0.43 * sum(weights[n].numel() for n in mine), abs=4)
    for name, weight in weights.items():
        rows = (weight == 0).sum(1)
        even, extra = divmod(found[name], len(weight))
        expected = even + (torch.arange(len(weight)) < extra)
        assert torch.equal(rows, expected) == (compare == "row"), name


@pytest.mark.parametrize("method", METHODS)
def test_a_sparsity_of_zero_changes_no_bit(method):
    model = tiny_model(dtype=torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    _, report = sparsified(model, method=method, sparsity=0)
    assert report.plan.reached == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_result_does_not_depend_on_the_batches(method, mode, variant):
    one, other = (
        sparsified(tiny_model(variant), method=method, mode=mode, sparsity=0.5, batch_size=b)[0] for b in (2, 5)
    )
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_linears_left_dense_are_read_through(method, variant):
    """The stages that prune nothing are passed, and those behind them see what they would have seen."""
    ignore = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "model.layers.1.self_attn.o_proj")
    before, model = linears(tiny_model(variant)), tiny_model(variant)
    weights, report = sparsified(model, method=method, sparsity=0.5, ignore=ignore)
    assert len(report.plan.removed) == 5
    for name, weight in weights.items():
        assert torch.equal(weight, before[name]) == (name not in report.plan.removed), name
    # o_proj and down_proj read what no other linear of their layer's part can change but those left dense.
    one_by_one = tiny_model(variant)
    for layer in range(3):
        for out in ("self_attn.o_proj", "mlp.down_proj"):
            path = f"model.layers.{layer}.{out}"
            if path in report.plan.removed:
                rest = tuple(name for name in weights if name != path)
                sparsified(one_by_one, method=method, sparsity=0.5, ignore=rest, mode="two-pass")
    for name, weight in linears(one_by_one).items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("mode", "calls"), [("sequential", 1), ("two-pass", 2), ("one-shot", 1)])
def test_how_often_the_expensive_parts_run(mode, calls, monkeypatch):
    model = tiny_model()
    called: dict[str, int] = {}
    names = {id(module.weight): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    multiply, attend = nn.functional.linear, nn.functional.scaled_dot_product_attention

    def counting_multiply(x, weight, bias=None):
        called[names[id(weight)]] = called.get(names[id(weight)], 0) + 1
        return multiply(x, weight, bias)

    def counting_attend(*args, **kwargs):
        called["attention"] = called.get("attention", 0) + 1
        return attend(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "linear", counting_multiply)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counting_attend)
    method = "sparsegpt" if mode == "one-shot" else "wanda"
    sparsified(model, method=method, mode=mode, sparsity=0.5, batch_size=3)
    batches, last = 2, "model.layers.2."
    assert called.pop("attention") == batches * (3 * calls - (calls - 1))
    for name in linears(model):
        # Behind the last layer nobody reads, so it runs no further than its last statistics.
        less = calls - 1 if mode == "two-pass" else mode == "sequential" and name == f"{last}mlp.down_proj"
        assert called.pop(name, 0) == batches * (calls - less * name.startswith(last)), name
    assert not called


def test_norms_run_no_more_once_their_part_is_finished(monkeypatch):
    model, called = tiny_model(), collections.Counter()
    names = {module: name for name, module in model.named_modules()}
    norm = type(model.model.norm)
    compute = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, x: called.update([names[self]]) or compute(self, x))
    sparsified(model, sparsity=0.5, batch_size=3)
    # Twice a batch: before the part's first linears, which are then pruned, and on the way to its last.
    batches = 2
    norms = ("input_layernorm", "post_attention_layernorm")
    expected = {f"model.layers.{layer}.{name}": 2 * batches for layer in range(3) for name in norms}
    assert called == expected | {"model.norm": called["model.norm"]}


def test_one_shot_takes_known_statistics():
    statistics = pruneengine.calibrate(tiny_model(), TOKENS, ("squares",))
    config = pruneengine.SparseConfig(sparsity=0.5, mode="one-shot")
    known = tiny_model()
    report = pruneengine.sparsify(known, config=config, statistics=statistics)
    assert report.statistics is statistics
    collected, _ = sparsified(tiny_model(), sparsity=0.5, mode="one-shot")
    assert all(torch.equal(weight, collected[name]) for name, weight in linears(known).items())
    sequential, _ = sparsified(tiny_model(), sparsity=0.5)
    same = {name for name, weight in sequential.items() if torch.equal(weight, collected[name])}
    assert same == {f"model.layers.0.self_attn.{part}_proj" for part in "qkv"}, "pruned linears before are seen"


def test_deciding_alone_touches_nothing_and_plans_are_reused(tmp_path):
    model = tiny_model()
    structure, config = find_groups(model), pruneengine.SparseConfig(sparsity=0.5)
    dry = decide(model, structure, TOKENS, config)
    assert not any(zeros(linears(model)).values())
    carry_out(model, structure, TOKENS, dry, Stopwatch())
    dry.plan.save(tmp_path / "plan.json")
    plan = pruneengine.SparsePlan.load(tmp_path / "plan.json")
    again = tiny_model()
    report = pruneengine.sparsify(again, TOKENS, plan=plan)
    assert report.plan == dry.plan == plan
    assert report.allocation is None
    assert json.loads(plan.to_json())["reached"] == 0.5
    for name, weight in linears(again).items():
        assert torch.equal(weight, linears(model)[name])


def test_what_a_plan_leaves_out_stays_dense():
    weights, report = sparsified(tiny_model(), sparsity=0.5, ignore=("q_proj", "layers.1.mlp.down_proj"))
    again = tiny_model()
    assert pruneengine.sparsify(again, TOKENS, plan=report.plan).plan == report.plan
    assert all(torch.equal(weight, weights[name]) for name, weight in linears(again).items())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_part_that_changes_its_output_is_run_twice_with_a_warning(method):
    model, same = tiny_model(), tiny_model()
    mlp = model.model.layers[1].mlp
    inner = mlp.forward
    mlp.forward = lambda x: inner(x) * 1.0
    weights, report = sparsified(model, method=method, sparsity=0.5)
    assert zeros(weights) == report.plan.removed
    assert len(report.warnings) == 1
    assert "layer 1 ran twice: model.layers.1.mlp.down_proj" in report.warnings[0]
    expected, _ = sparsified(same, method=method, sparsity=0.5)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)
    assert vars(mlp)["forward"] is not inner, "what stood in for it is gone, and what it had is there"
    assert not any("forward" in vars(module) for module in same.modules())


def test_too_little_text_for_a_hessian_is_damped_more():
    model = tiny_model()
    weights, report = sparsified(model, tiny_tokens(1, 3), method="sparsegpt", sparsity=0.5, damp=1e-12)
    assert zeros(weights) == report.plan.removed
    assert all(weight.isfinite().all() for weight in weights.values())
    assert report.warnings
    assert all("no Cholesky factor at damp 1e-12; 1e-" in warning for warning in report.warnings)
    assert any("layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj" in warning for warning in report.warnings)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("mode", MODES)
def test_activations_that_are_not_finite_name_the_linear(method, mode):
    model = tiny_model(dtype=torch.float16)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.fill_(6e4)
    with pytest.raises(ValueError, match=r"(what enters model\.layers\.1\.|layers\.1\.\w+ is )"):
        sparsified(model, method=method, mode=mode, sparsity=0.5)


def refused(message, batches=TOKENS, model=None, **options):
    model = model or tiny_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        pruneengine.sparsify(model, batches, **options)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_what_cannot_be_done_is_refused_before_anything_changes():
    half = pruneengine.SparseConfig(sparsity=0.5)
    refused("method 'wanda' in mode 'sequential' needs calibration batches, got none", None, config=half)
    owl = pruneengine.SparseConfig(method="magnitude", sparsity=0.5, allocation="owl")
    refused("with allocation 'owl' needs calibration batches or statistics, got neither", None, config=owl)
    refused("token id 97: expected 0 to 96", torch.full((2, 8), 97), config=half)
    refused(
        r"groups of 8 need input dimensions .*q_proj \(60\)", config=pruneengine.SparseConfig(pattern="4:8", block=24)
    )
    refused("sparsity is missing")
    poisoned = tiny_model()
    with torch.no_grad():
        poisoned.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    refused("layers.2.mlp.up_proj.weight are not finite", model=poisoned, config=half)
    other = pruneengine.sparsify(tiny_model(intermediate_size=76), TOKENS, half).plan
    refused("the plan is of another model: model.layers.0.mlp", plan=other)
    plan = pruneengine.sparsify(tiny_model(), TOKENS, half).plan
    magnitude = dataclasses.replace(half, method="magnitude")
    refused("the plan has method 'wanda', the config 'magnitude'", config=magnitude, plan=plan)
    statistics = pruneengine.calibrate(tiny_model(), TOKENS, ("sum",))
    refused("must hold 'squares'; collected: sum", config=owl, statistics=statistics)
    foreign = pruneengine.calibrate(tiny_model(seed=1), TOKENS, ("squares",))
    refused("belong to another model", config=half, statistics=foreign)


def test_an_interrupt_leaves_whole_layers(monkeypatch):
    model = tiny_model()
    expected, report = sparsified(tiny_model(), sparsity=0.5)
    third = model.model.layers[2].self_attn

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(third.o_proj, "forward", interrupted)
    monkeypatch.setattr(third, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sparsified(model, sparsity=0.5)
    found = zeros(linears(model))
    for name, weight in linears(model).items():
        if ".layers.2." not in name:
            assert torch.equal(weight, expected[name]), name
    assert found["model.layers.2.mlp.down_proj"] == 0
    assert report.plan.removed["model.layers.2.mlp.down_proj"] > 0
