"""The library's verb, and its stages one by one."""

from dataclasses import fields

import pytest
import torch

import pruneengine
from pruneengine import PruneConfig, PruneReport, SparseConfig, SparseReport, Statistics
from pruneengine.structured.scores.metrics import METRICS
from tests.helpers.tiny import logits, tiny_model, tiny_tokens


@pytest.mark.parametrize("method", METRICS)
def test_prune_in_place_by_every_method(method):
    model, tokens = tiny_model(), tiny_tokens(4)
    report = pruneengine.prune(model, tokens, PruneConfig(method=method, ratio=0.4, batch_size=2))
    assert sum(p.numel() for p in model.parameters()) == report.plan.params_after < report.plan.params_before
    assert abs(report.plan.reached - 0.4) < 0.06
    assert bool(torch.isfinite(logits(model, tokens)).all())
    assert set(report.seconds) >= {"structure", "score", "plan", "compact"}
    assert method in str(report)


def test_the_stages_one_by_one_give_what_the_verb_gives():
    tokens = tiny_tokens(4)
    model = tiny_model()
    structure = pruneengine.find_groups(model)
    statistics = pruneengine.calibrate(model, tokens, {"signed"})
    scores = pruneengine.score(model, "vectorize", statistics)
    ratios = pruneengine.allocate(structure, scores, 0.4)
    plan = pruneengine.make_plan(structure, scores, ratios, 0.4)
    pruneengine.compact(model, plan)
    other = tiny_model()
    report = pruneengine.prune(other, tokens, PruneConfig(method="vectorize", ratio=0.4))
    assert report.plan == plan
    assert torch.equal(logits(model, tokens), logits(other, tokens))


def test_statistics_are_reused_at_any_ratio(tmp_path):
    tokens = tiny_tokens(4)
    pruneengine.calibrate(tiny_model(), tokens, {"signed"}).save(tmp_path / "s.safetensors")
    statistics = Statistics.load(tmp_path / "s.safetensors")
    for ratio in (0.3, 0.6):
        fresh, reused = tiny_model(), tiny_model()
        config = PruneConfig(method="vectorize", ratio=ratio)
        expected = pruneengine.prune(fresh, tokens, config).plan
        assert pruneengine.prune(reused, config=config, statistics=statistics).plan == expected


def test_a_new_metric_is_a_few_lines():
    @pruneengine.metric("peak_weight")
    def _peak(view):
        return view.weight.abs().amax(1 - view.member.axis)

    try:
        model = tiny_model()
        scores = pruneengine.score(model, "peak_weight")
        mlp = model.model.layers[0].mlp
        expected = (
            mlp.gate_proj.weight.abs().amax(1) + mlp.up_proj.weight.abs().amax(1) + mlp.down_proj.weight.abs().amax(0)
        )
        torch.testing.assert_close(scores.groups["layers.0.mlp"], expected.detach())
    finally:
        del METRICS["peak_weight"]


def test_an_unreachable_ratio_is_refused_before_calibration(monkeypatch):
    model, tokens = tiny_model(), tiny_tokens()
    passes = []
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    with pytest.raises(ValueError, match="removes nothing at legal widths"):
        pruneengine.prune(model, tokens, PruneConfig(method="param_first", structure=("heads",), ratio=0.1))
    assert not passes


@pytest.mark.parametrize("config", [{"layers": (1, 2)}, {"structure": ("mlp",)}])
def test_only_what_may_be_pruned_is_collected(config):
    report = pruneengine.prune(tiny_model(), tiny_tokens(), PruneConfig(ratio=0.2, **config))
    modules = report.statistics.tensors["abs_mean"].keys()
    assert modules
    assert all("layers.1." in m for m in modules) if "layers" in config else all(".mlp." in m for m in modules)


@pytest.mark.parametrize(
    ("config", "batches", "message"),
    [
        ({"method": "vectorize"}, None, "method 'vectorize' needs calibration batches or statistics"),
        ({"method": "magnitude_l1", "layers": (1, 9)}, None, "layers 1:9 go beyond the model's 3 layers"),
        ({"method": "magnitude_l1", "structure": ("heads",), "ratio": 0.1}, None, "removes nothing at legal widths"),
        ({"method": "wanda"}, "another model", "another model"),
    ],
)
def test_what_cannot_be_done_leaves_the_model_alone(config, batches, message):
    model = tiny_model()
    before = logits(model, tiny_tokens())
    statistics = pruneengine.calibrate(tiny_model(seed=7), tiny_tokens(), {"squares"}) if batches else None
    with pytest.raises(ValueError, match=message):
        pruneengine.prune(model, None, PruneConfig(**config), statistics=statistics)
    assert torch.equal(logits(model, tiny_tokens()), before)


def test_one_verb_prunes_units_or_single_weights():
    tokens = tiny_tokens(2)
    config = SparseConfig("magnitude", 0.5)
    report = pruneengine.prune(tiny_model(), tokens, config)
    assert isinstance(report, SparseReport)
    again = pruneengine.prune(tiny_model(), plan=report.plan)
    assert again.plan == pruneengine.sparsify(tiny_model(), None, config).plan == report.plan
    structured = pruneengine.prune(tiny_model(), tokens, PruneConfig("magnitude_l1", 0.3))
    assert isinstance(structured, PruneReport)
    shared = {"config", "plan", "statistics", "seconds", "warnings"}
    assert shared <= {field.name for field in fields(report)} & {field.name for field in fields(structured)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"config": "wanda"}, TypeError, "a PruneConfig or a SparseConfig, got str"),
        ({"plan": "plan.json"}, TypeError, "plan must be a SparsePlan, got str; compact"),
        ({"config": PruneConfig(), "plan": True}, ValueError, "a sparse plan goes with a SparseConfig"),
    ],
)
def test_arguments_that_do_not_apply_are_refused(options, error, message):
    model, tokens = tiny_model(), tiny_tokens(2)
    before = logits(model, tokens)
    if options.get("plan") is True:
        options = options | {"plan": pruneengine.sparsify(tiny_model(), None, SparseConfig("magnitude", 0.5)).plan}
    with pytest.raises(error, match=message):
        pruneengine.prune(model, tokens, **options)
    assert torch.equal(logits(model, tokens), before)


def test_the_calibration_text_is_taken_by_its_former_name():
    tokens = tiny_tokens()
    plans = []
    for name in ("samples", "batches"):
        report = pruneengine.prune(tiny_model(), config=PruneConfig("wanda", 0.4), **{name: tokens})
        plans.append(report.plan)
        assert pruneengine.sparsify(tiny_model(), config=pruneengine.SparseConfig("wanda", 0.5), **{name: tokens})
    assert plans[0] == plans[1]
    with pytest.raises(TypeError, match=r"prune takes samples, or batches \(its former name\), got both"):
        pruneengine.prune(tiny_model(), samples=tokens, batches=tokens)
