"""A prune that was stopped goes on behind the layers that it had finished, and ends as an unbroken one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruneengine import SparseConfig
from pruneengine.common.progress import Stopwatch
from pruneengine.data.samples import as_samples
from pruneengine.evaluation.measures import Measurer
from pruneengine.jobs import prune
from pruneengine.jobs import prune_sparse as job
from pruneengine.jobs.checkpoint_job import CheckpointJob
from pruneengine.model import find_groups
from pruneengine.sparse import prune as engine
from pruneengine.sparse import resume as partial
from pruneengine.sparse.pruners import pruner as pruners
from pruneengine.sparse.resume import partial_folder, remove_partial
from tests.helpers.tiny import tiny_model, tiny_tokens

TOKENS = as_samples(tiny_tokens(5, 16))
EVERY = [(method, mode) for method in ("wanda", "sparsegpt") for mode in ("sequential", "two-pass", "one-shot")]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(partial, "AFTER_SECONDS", 0.0)


def pruned(config, work, model=None, tokens=TOKENS):
    model = model or tiny_model(seed=3)
    structure = find_groups(model)
    report = engine.decide(model, structure, tokens, config)
    kept = None if work is None else engine.keep_layers(model, tokens, report, work)
    return model.state_dict(), engine.carry_out(model, structure, tokens, report, Stopwatch(), kept)


def killed(monkeypatch, layer, *arguments):
    """Run until a layer's first matrices are to be pruned."""
    for kind in (pruners.Wanda, pruners.SparseGPT):

        def stopped(self, matrices, sums, own=kind.prune):
            if matrices[0].layer == layer:
                raise KeyboardInterrupt
            own(self, matrices, sums)

        monkeypatch.setattr(kind, "prune", stopped)
    with pytest.raises(KeyboardInterrupt):
        pruned(*arguments)
    monkeypatch.undo()
    monkeypatch.setattr(partial, "AFTER_SECONDS", 0.0)


@pytest.mark.parametrize(("method", "mode"), [each for each in EVERY if each != ("wanda", "one-shot")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_killed_ends_as_what_was_not(tmp_path, monkeypatch, method, mode, dtype):
    config = SparseConfig(method, 0.5, mode=mode, batch_size=2, allocation="owl")
    unbroken, _ = pruned(config, None, tiny_model(seed=3, dtype=dtype))
    killed(monkeypatch, 2, config, tmp_path / "work", tiny_model(seed=3, dtype=dtype))
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        "job.json", "layer-00000.safetensors", "layer-00001.safetensors",
    ]  # fmt: skip
    layers = []
    for kind in (pruners.Wanda, pruners.SparseGPT):

        def watched(self, matrices, sums, own=kind.prune):
            layers.append(matrices[0].layer)
            own(self, matrices, sums)

        monkeypatch.setattr(kind, "prune", watched)
    resumed, _ = pruned(config, tmp_path / "work", tiny_model(seed=3, dtype=dtype))
    assert set(layers) == {2}
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in resumed.items())


def test_warnings_of_kept_layers_are_given_again(tmp_path, monkeypatch):
    config = SparseConfig("sparsegpt", 0.5)

    def stronger(hessian, damp):
        return inverse(hessian, 10 * damp)

    inverse = pruners.inverse_factor
    monkeypatch.setattr(pruners, "inverse_factor", stronger)
    _, first = pruned(config, tmp_path / "work")
    assert len(first.warnings) == 12
    monkeypatch.setattr(pruners, "inverse_factor", lambda *_: pytest.fail("pruned again"))
    _, again = pruned(config, tmp_path / "work")
    assert again.warnings == first.warnings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": SparseConfig("wanda", 0.6)}, "sparsity 0.5, now 0.6; repeat it with the same ones, or delete"),
        ({"config": SparseConfig("wanda", 0.5, mode="two-pass")}, "mode 'sequential', now 'two-pass'"),
        ({"model": tiny_model(seed=4)}, "with other settings: model"),
        ({"tokens": as_samples(tiny_tokens(5, 16, seed=9))}, "with other settings: calibration text"),
    ],
)
def test_the_layers_of_another_prune_are_refused(tmp_path, changes, message):
    config, work = SparseConfig("wanda", 0.5), tmp_path / "work"
    pruned(config, work)
    with pytest.raises(ValueError, match=message):
        pruned(changes.pop("config", config), work, **changes)


def test_a_folder_of_other_things_is_neither_used_nor_removed(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="holds no layers of a prune"):
        pruned(SparseConfig("wanda", 0.5), tmp_path)
    remove_partial(tmp_path)
    assert (tmp_path / "notes").exists()


def test_half_written_files_of_a_killed_prune_are_no_obstacle_and_go_with_the_rest(tmp_path):
    config, work = SparseConfig("wanda", 0.5), tmp_path / "work"
    work.mkdir()
    torn = [work / ".job.json.x1y2", work / ".layer-00000.safetensors.x1y2"]
    for path in torn:
        path.write_bytes(b"half")
    pruned(config, work)
    assert (work / "layer-00000.safetensors").exists()
    remove_partial(work)
    assert not work.exists()


def test_a_damaged_layer_is_named(tmp_path):
    config, work = SparseConfig("wanda", 0.5), tmp_path / "work"
    pruned(config, work)
    (work / "layer-00001.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"layer-00001.safetensors is damaged .* delete it"):
        pruned(config, work)


@pytest.fixture
def left(folder, tmp_path, monkeypatch):
    """A job that was stopped, and the folder of its layers."""
    options = prune.JobOptions(str(folder / "model"), tmp_path / "out", eval_text=None, proof=False)
    config = SparseConfig("wanda", 0.5, nsamples=4, seqlen=16, allocation="owl")
    monkeypatch.setattr(CheckpointJob, "store", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        job.run(config, options)
    assert partial_folder(options.out).exists()
    return config, options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 0.6}, "with other settings: sparsity 0.5, now 0.6; repeat"),
        ({"mode": "two-pass"}, "with other settings: mode 'sequential', now 'two-pass'; repeat"),
        ({"batch_size": 3}, "with other settings: batch_size 8, now 3; repeat"),
    ],
)
def test_other_settings_are_refused_before_the_model_is_loaded(left, monkeypatch, changes, message):
    config, options = left
    monkeypatch.setattr(prune.JobOptions, "load", lambda *_: pytest.fail("loaded before it was refused"))
    with pytest.raises(ValueError, match=message):
        job.run(replace(config, **changes), options)


def test_a_folder_of_other_things_is_refused_before_the_model_is_loaded(folder, tmp_path, monkeypatch):
    options = prune.JobOptions(str(folder / "model"), tmp_path / "out", eval_text=None, proof=False)
    monkeypatch.setattr(prune.JobOptions, "load", lambda *_: pytest.fail("loaded before it was refused"))
    work = partial_folder(options.out)
    work.write_text("a file")
    with pytest.raises(ValueError, match=r"out.partial holds no layers of a prune"):
        job.run(SparseConfig("wanda", 0.5), options)
    work.unlink()
    work.mkdir()
    (work / "notes").write_text("mine")
    with pytest.raises(ValueError, match=r"out.partial holds no layers of a prune"):
        job.run(SparseConfig("wanda", 0.5), options)
    assert (work / "notes").exists()


def test_another_text_or_model_is_refused_before_statistics_are_read(left, tmp_path, monkeypatch):
    config, options = left
    monkeypatch.setattr(job, "decide", lambda *_, **__: pytest.fail("decided before it was refused"))
    with pytest.raises(ValueError, match=r"with other settings: calibration text '.*', now '[^,]*'; repeat"):
        job.run(replace(config, nsamples=5), options)
    tiny_model(seed=9, vocab_size=256).save_pretrained(tmp_path / "model")
    for path in Path(options.source).glob("token*"):
        shutil.copy(path, tmp_path / "model")
    with pytest.raises(ValueError, match=r"with other settings: model '.*', now '[^,]*'; repeat"):
        job.run(config, replace(options, source=str(tmp_path / "model")))


def test_a_short_prune_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "AFTER_SECONDS", 60.0)
    pruned(SparseConfig("wanda", 0.5), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_full_disk_ends_the_keeping_and_not_the_prune(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    unbroken, _ = pruned(SparseConfig("wanda", 0.5), None)
    monkeypatch.setattr(partial, "write_atomically", full)
    found, report = pruned(SparseConfig("wanda", 0.5), tmp_path / "work")
    assert report.warnings == ("from layer 0 on no layer was kept on the way: No space left on device",)
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in found.items())


def test_the_job_goes_on_and_removes_what_it_kept(folder, tmp_path, monkeypatch):
    out, lines = tmp_path / "out", []
    options = prune.JobOptions(str(folder / "model"), out, eval_text=None, proof=False)
    config = SparseConfig("wanda", 0.5, nsamples=4, seqlen=16)
    monkeypatch.setattr(CheckpointJob, "store", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        job.run(config, options)
    work = partial_folder(out)
    assert len(list(work.glob("layer-*"))) == 3
    monkeypatch.undo()
    with monkeypatch.context() as patched:
        patched.setattr(Measurer, "measure", lambda *_: pytest.fail("evaluated before it was refused"))
        with pytest.raises(ValueError, match="with other settings: counts"):
            job.run(replace(config, allocation="er"), options)
    monkeypatch.setattr(pruners.Wanda, "prune", lambda *_: pytest.fail("pruned again"))
    result = job.run(config, options, lines.append)
    assert f"pruning by wanda, behind the layers in {work}" in lines
    assert result.zeros.differing == {}
    assert not work.exists()
    assert json.loads((out / "plan.json").read_text())["reached"] == 0.5
