"""Statistics of named subsets against those of a pass over their samples alone, for every quantity."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruneengine.calibration import gradient_sums
from pruneengine.calibration.calibrate import calibrate
from pruneengine.calibration.statistics import QUANTITIES, Statistics
from pruneengine.model import find_groups, get_linear
from tests.calibration.test_calibrate import assert_same
from tests.helpers.tiny import tiny_model, tiny_tokens

ALL = frozenset(QUANTITIES)
SUBSETS = {"ends": (0, 6), "one": (3,), "odd": (5, 1, 3), "whole": tuple(range(7))}


def test_means_are_taken_once_and_are_those_of_the_rows():
    pool = calibrate(tiny_model(), tiny_tokens(4), {"signed", "abs_mean"}, subsets={"pair": [1, 3], "all": range(4)})
    member = next(iter(pool.tensors["signed"]))
    rows = pool.get("signed", member)
    for found, of in ((pool, rows), (pool.of_subset("pair"), rows[[1, 3]]), (pool.of_subset("all"), rows)):
        assert torch.equal(found.get("signed", member), of)
        assert torch.equal(found.mean("signed", member), of.mean(0))
        assert torch.equal(found.mean("signed", member, "|x|"), of.abs().mean(0))
        assert torch.equal(found.mean("signed", member, "x^2"), of.square().mean(0))
        assert found.mean("signed", member, "x^2") is found.mean("signed", member, "x^2")
    assert torch.equal(pool.mean("abs_mean", member), pool.get("abs_mean", member))
    # Of other tensors, and in another process, means are their own.
    louder = replace(pool, tensors={"signed": {member: 2 * rows}})
    assert torch.equal(louder.mean("signed", member), (2 * rows).mean(0))
    copy = pickle.loads(pickle.dumps(pool.of_subset("pair")))
    assert torch.equal(copy.mean("signed", member), rows[[1, 3]].mean(0))
    # All rows are no copy.
    assert pool.of_subset("all").get("signed", member).data_ptr() == rows.data_ptr()


@pytest.mark.parametrize("variant", ["llama-gqa-tied", "llama-biases", "qwen3-norms"])
def test_a_subset_is_as_if_only_its_samples_had_been_read(variant):
    model, tokens = tiny_model(variant), tiny_tokens(7)
    pool = calibrate(model, tokens, ALL, subsets=SUBSETS, batch_size=3)
    for name, samples in SUBSETS.items():
        alone = calibrate(model, tokens[list(samples)], ALL)
        found = pool.of_subset(name)
        assert_same(alone, found)
        torch.testing.assert_close(found.loss, alone.loss)
        assert (found.num_samples, found.subsets, found.of_subsets) == (len(samples), {}, {})


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("quantities", [{"abs_mean"}, {"mix"}, {"abs_mean", "mix", "signed"}])
def test_subsets_do_not_depend_on_the_batch_and_leave_the_rest_alone(batch_size, quantities):
    model, tokens = tiny_model(), tiny_tokens(7)
    plain = calibrate(model, tokens, quantities)
    pool = calibrate(model, tokens, quantities, subsets=SUBSETS, batch_size=batch_size)
    assert_same(plain, pool)
    assert_same(plain, pool.of_subset("whole"))
    torch.testing.assert_close(pool.loss, plain.loss)


def test_tiles_and_chunks_of_samples_do_not_change_a_sum(monkeypatch):
    model, tokens = tiny_model("llama-biases"), tiny_tokens(7)
    whole = calibrate(model, tokens, {"abs_mean", "mix"}, subsets=SUBSETS, layers=range(1, 2))
    for name, value in (("_ROWS", 7), ("_COLUMNS", 11), ("_SAMPLES", 2)):
        monkeypatch.setattr(gradient_sums, name, value)
    tiled = calibrate(model, tokens, {"abs_mean", "mix"}, subsets=SUBSETS, layers=range(1, 2))
    for name in SUBSETS:
        assert_same(whole.of_subset(name), tiled.of_subset(name))


def test_many_sets_take_lower_tiles(monkeypatch):
    monkeypatch.setattr(gradient_sums, "_BYTES", 4 * gradient_sums._COLUMNS * (gradient_sums._SAMPLES + 4) * 5)
    heights = []
    moments = gradient_sums.ManySets._moments
    monkeypatch.setattr(
        gradient_sums.ManySets, "_moments", lambda s, x, d: (heights.append(d.shape[2]), moments(s, x, d))[1]
    )
    calibrate(tiny_model(), tiny_tokens(3), {"mix"}, subsets={"a": [0]}, layers=range(2, 3))
    assert max(heights) == 5


def test_half_precision_gradients_are_scaled_back():
    model, tokens = tiny_model(dtype=torch.float16), tiny_tokens(4)
    pool = calibrate(model, tokens, {"abs_mean", "mix"}, subsets={"pair": [1, 2]})
    alone = calibrate(model, tokens[[1, 2]], {"abs_mean", "mix"})
    assert_same(alone, pool.of_subset("pair"), rtol=2e-2)


def test_the_formula_against_autograd():
    """Return abs_mean and mix of two samples from full weight gradients."""
    model, tokens = tiny_model("qwen2-biases"), tiny_tokens(3)
    pool = calibrate(model, tokens, {"abs_mean", "mix"}, subsets={"pair": [0, 2]}).of_subset("pair")
    model.requires_grad_(True)
    members = [m for group in find_groups(model).groups for m in group.members]
    weights = [get_linear(model, m.module).weight for m in members]
    gradients = []
    for n in (0, 2):
        out = model(input_ids=tokens[n : n + 1], use_cache=False).logits[0, :-1]
        gradients.append(torch.autograd.grad(torch.nn.functional.cross_entropy(out, tokens[n, 1:]), weights))
    for member, w, first, second in zip(members, weights, *gradients, strict=True):
        mean, squares = (first + second) / 2, (first**2 + second**2) / 2
        for quantity, inside in (("abs_mean", w * mean), ("mix", w * mean - w**2 * squares / 2)):
            expected = inside.abs().sum(1 - member.axis).detach()
            torch.testing.assert_close(pool.get(quantity, member.module), expected, rtol=1e-4, atol=1e-6)


def test_losses_come_with_one_forward_pass():
    model, tokens = tiny_model(), tiny_tokens(5)
    passes = []
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    found = calibrate(model, tokens, {"sum", "squares"}, losses=True, batch_size=5)
    hook.remove()
    assert (len(passes), set(found.tensors)) == (1, {"sum", "squares"})
    torch.testing.assert_close(found.loss, calibrate(model, tokens, {"signed"}).loss)
    assert len(calibrate(model, tokens, {"sum"}).loss) == 0


def test_subsets_survive_a_file_and_older_files_load(tmp_path):
    path = tmp_path / "pool.safetensors"
    pool = calibrate(tiny_model(), tiny_tokens(7), {"mix", "squares"}, subsets=SUBSETS)
    pool.save(path)
    again = Statistics.load(path)
    assert again.subsets == SUBSETS
    for name in SUBSETS:
        assert_same(pool.of_subset(name), again.of_subset(name), rtol=0)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["pruneengine"])
    tensors = load_file(path)
    del header["subsets"]
    old = {key: t for key, t in tensors.items() if "@" not in key}
    save_file(old, path, metadata={"pruneengine": json.dumps(header)})
    assert Statistics.load(path).subsets == {}
    assert_same(calibrate(tiny_model(), tiny_tokens(7), {"mix", "squares"}), Statistics.load(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: [t.pop(key) for key in list(t) if "@" in key], "mix of 4 subsets is missing"),
        (lambda t, h: h["subsets"].pop("one"), r"mix of subsets of .* is torch.float32 \[4, "),
        (lambda t, h: h["subsets"].update(one=[7]), r"subset 'one' must be different samples from 0\.\.6, got \[7\]"),
        (lambda t, h: h.update(subsets=[]), "no attribute 'items'"),
    ],
)
def test_damaged_subsets_are_refused(tmp_path, change, message):
    path = tmp_path / "pool.safetensors"
    calibrate(tiny_model(), tiny_tokens(7), {"mix"}, subsets=SUBSETS).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["pruneengine"])
    tensors = load_file(path)
    change(tensors, header)
    save_file(tensors, path, metadata={"pruneengine": json.dumps(header)})
    with pytest.raises(ValueError, match=rf"corrupt statistics file \(.*{message}"):
        Statistics.load(path)


def test_choosing_rows_or_merging_leaves_no_stale_subsets():
    model, tokens = tiny_model(), tiny_tokens(7)
    pool = calibrate(model, tokens, {"mix", "signed"}, subsets=SUBSETS)
    for found in (pool.subset([1, 2]), pool.merge(calibrate(model, tokens, {"signed"}))):
        assert (set(found.tensors), found.subsets, found.of_subsets) == ({"signed"}, {}, {})


def test_bad_subsets_are_refused_before_a_pass():
    model, tokens = tiny_model(), tiny_tokens(3)
    model.forward = model.model.forward = None
    for samples in ([], [0, 0], [3], [-1]):
        with pytest.raises(ValueError, match=r"subset 'bad' must be different samples from 0\.\.2, got \["):
            calibrate(model, tokens, {"mix"}, subsets={"bad": samples})
    with pytest.raises(ValueError, match="a loss needs at least 2"):
        calibrate(model, tokens[:, :1], {"sum"}, losses=True)
    statistics = calibrate(tiny_model(), tokens, {"sum"}, subsets={"a": [0]})
    with pytest.raises(ValueError, match="unknown subset 'b'; collected: a"):
        statistics.of_subset("b")
