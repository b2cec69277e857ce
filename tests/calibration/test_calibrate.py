"""Statistics per sample: independent of batches, additive, and equal to what autograd gives."""

import gc
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.statistics import QUANTITIES, Statistics
from pruneengine.model import find_groups, get_linear
from tests.helpers.tiny import VARIANTS, tiny_model, tiny_tokens

ALL = frozenset(QUANTITIES)
ADDITIVE = frozenset(q for q, (per_sample, _) in QUANTITIES.items() if per_sample)


def assert_same(first: Statistics, second: Statistics, rtol=2e-4):
    assert first.tensors.keys() == second.tensors.keys()
    for quantity, named in first.tensors.items():
        assert named.keys() == second.tensors[quantity].keys()
        for name, tensor in named.items():
            scale = float(tensor.abs().max())
            torch.testing.assert_close(second.tensors[quantity][name], tensor, rtol=rtol, atol=1e-5 * scale)


@pytest.mark.parametrize("variant", VARIANTS)
def test_invariant_to_batch_split(variant):
    model, tokens = tiny_model(variant), tiny_tokens(5)
    whole = calibrate(model, tokens, ALL, batch_size=5)
    assert_same(whole, calibrate(model, tokens, ALL, batch_size=2))
    torch.testing.assert_close(whole.loss, calibrate(model, tokens, {"signed"}, batch_size=3).loss)


def test_rows_belong_to_samples():
    model, tokens = tiny_model(), tiny_tokens(5)
    whole = calibrate(model, tokens, ADDITIVE)
    assert_same(whole.subset([3, 0]), calibrate(model, tokens[[3, 0]], ADDITIVE))
    assert_same(whole.subset([0, 1]).merge(whole.subset([2, 3, 4])), whole)


def test_the_signed_quantity_is_the_same_with_and_without_weight_gradients():
    """Compare one backward pass with frozen weights with the layer-by-layer pass, and with autograd's W * G."""
    model, tokens = tiny_model("qwen2-biases"), tiny_tokens(4)
    gates = calibrate(model, tokens, {"signed"})
    both = calibrate(model, tokens, {"signed", "fisher"})
    assert_same(Statistics({"signed": both.tensors["signed"]}, 4, 16, "", ""), Statistics(gates.tensors, 4, 16, "", ""))
    model.requires_grad_(True)
    out = model(input_ids=tokens[:1], use_cache=False).logits[0, :-1]
    torch.nn.functional.cross_entropy(out, tokens[0, 1:]).backward()
    for group in find_groups(model).groups:
        for member in group.members:
            weight = get_linear(model, member.module).weight
            expected = (weight * weight.grad).sum(1 - member.axis).detach()
            found = gates.tensors["signed"][member.module][0]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_layer_range_gives_the_same_rows_for_fewer_layers():
    model, tokens = tiny_model(), tiny_tokens(3)
    whole = calibrate(model, tokens, ALL)
    part = calibrate(model, tokens, ALL, layers=range(1, 2))
    for quantity, named in part.tensors.items():
        assert named
        for name, tensor in named.items():
            assert "layers.1." in name
            torch.testing.assert_close(tensor, whole.tensors[quantity][name], rtol=1e-4, atol=1e-6)


def test_model_is_left_as_it_was():
    model = tiny_model().train()
    model.model.embed_tokens.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calibrate(model, tiny_tokens(2), ALL)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_no_more_than_one_layers_gradient_is_alive():
    """Check that new weight-shaped tensors at any layer boundary of an elementwise pass fit in one layer."""
    model, tokens = tiny_model(num_hidden_layers=6), tiny_tokens(2)
    weights = [p for p in model.model.layers[0].parameters() if p.dim() == 2]
    shapes, layer_size = {w.shape for w in weights}, sum(w.numel() for w in weights)
    peak = 0

    def live_tensors() -> dict[int, int]:
        return {id(t): t.numel() for t in gc.get_objects() if type(t) is torch.Tensor and t.shape in shapes}

    before = live_tensors()

    def measure(*_):
        nonlocal peak
        peak = max(peak, sum(n for key, n in live_tensors().items() if key not in before))

    for layer in model.model.layers:
        layer.register_forward_hook(measure)
    calibrate(model, tokens, {"abs_mean"})
    assert 0 < peak <= layer_size


@pytest.mark.parametrize("quantities", [{"signed", "squares"}, {"abs_mean", "fisher"}])
def test_nothing_of_a_pass_stays_alive(quantities):
    """Check that no hook holds its own tensor: that keeps the graph, and with it every activation, for good."""
    model, tokens = tiny_model("qwen2-biases"), tiny_tokens(4)

    def activations() -> int:
        gc.collect()
        return sum(type(t) is torch.Tensor and t.dim() == 3 for t in gc.get_objects())

    before = activations()
    statistics = calibrate(model, tokens, quantities, batch_size=1)
    assert activations() == before
    assert statistics.tensors.keys() == quantities


def test_errors_come_with_the_place():
    model = tiny_model()
    with pytest.raises(ValueError, match="unknown quantity 'hessian'; choose from sum"):
        calibrate(model, tiny_tokens(2), {"hessian"})
    with pytest.raises(ValueError, match="a loss needs at least 2"):
        calibrate(model, tiny_tokens(2, 1), {"signed"})
    with pytest.raises(ValueError, match="token id 97: expected 0 to 96"):
        calibrate(model, torch.full((2, 4), 97), {"squares"})
    with pytest.raises(ValueError, match="layers 3:3 hold no layer; expected some of 0:3"):
        calibrate(model, tiny_tokens(2), {"squares"}, layers=range(3, 3))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e30
    with pytest.raises(ValueError, match=r"squares of layers\.1\.down_in is not finite"):
        calibrate(model, tiny_tokens(2), {"squares"})
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weights of model\.layers\.1\.mlp\.up_proj\.weight are not finite"):
        calibrate(model, tiny_tokens(2), {"squares"})


def test_statistics_file_round_trip(tmp_path):
    statistics = calibrate(tiny_model(), tiny_tokens(3), ALL)
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    again = Statistics.load(path)
    assert_same(statistics, again, rtol=0)
    assert torch.equal(again.loss, statistics.loss)
    assert (again.model, again.data, again.num_samples) == (statistics.model, statistics.data, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["statistics.safetensors"]


def test_foreign_and_corrupt_statistics_are_refused(tmp_path):
    statistics = calibrate(tiny_model(), tiny_tokens(3), ADDITIVE)
    with pytest.raises(ValueError, match=r"another model: expected 123, the file says [0-9a-f]{16}"):
        statistics.check(model="123")
    with pytest.raises(ValueError, match=r"samples must be a non-empty choice from 0\.\.2"):
        statistics.subset([3])
    with pytest.raises(ValueError, match="cannot merge: only one side has 'sum'"):
        statistics.merge(calibrate(tiny_model(), tiny_tokens(3), {"sum"}, layers=range(1)))
    with pytest.raises(ValueError, match="cannot merge"):
        statistics.merge(calibrate(tiny_model(seed=9), tiny_tokens(3), {"sum"}))
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"no statistics")
    with pytest.raises(ValueError, match="corrupt statistics file"):
        Statistics.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a statistics file"):
        Statistics.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t.pop("loss"), "losses of 3 samples are missing"),
        (lambda t, h: h.pop("model"), "missing 1 required"),
        (lambda t, h: t.update({"colour/x": torch.zeros(3, 2)}), "unknown quantity 'colour'"),
        (lambda t, h: t.update({"sum/x": torch.zeros(2, 2)}), "sum of x is"),
        (lambda t, h: h.update(num_samples="3"), "losses of 3 samples are missing"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path, change, message):
    path = tmp_path / "statistics.safetensors"
    calibrate(tiny_model(), tiny_tokens(3), {"signed", "sum"}).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["pruneengine"])
    tensors = load_file(path)
    change(tensors, header)
    save_file(tensors, path, metadata={"pruneengine": json.dumps(header)})
    with pytest.raises(ValueError, match=rf"corrupt statistics file \(.*{message}"):
        Statistics.load(path)


def test_merging_keeps_losses_only_where_both_sides_have_them():
    model, tokens = tiny_model(), tiny_tokens(5)
    merged = calibrate(model, tokens[:3], {"signed", "squares"}).merge(calibrate(model, tokens[3:], {"squares"}))
    assert (merged.num_samples, len(merged.loss), set(merged.tensors)) == (5, 0, {"squares"})
    assert merged.subset([4]).num_samples == 1
