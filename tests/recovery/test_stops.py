"""Recovery that stops in the middle: by hand, at a loss that is not finite, on a full disk; and what is kept of it."""

import shutil
from unittest import mock

import pytest
import torch

from pruneengine.recovery import RecoverConfig, recover, training
from pruneengine.recovery.lora import attach, detach
from pruneengine.recovery.work import list_checkpoints
from pruneengine.report.values.recovery import training_warnings
from tests.helpers.tiny import tiny_model
from tests.recovery.test_recover import QUICK, WINDOWS, at_micro_batch, changed, stop, weights


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    config = RecoverConfig(**QUICK | {"lora_dropout": 0.3, "max_steps": 7})
    whole = tiny_model()
    expected = recover(whole, config=config, data=WINDOWS, work_dir=tmp_path / "whole")
    model = tiny_model()
    before = weights(model)
    with at_micro_batch(11, stop), pytest.raises(KeyboardInterrupt):
        recover(model, config=config, data=WINDOWS, work_dir=tmp_path / "work")
    assert not changed(model, before)
    assert not model.training
    # A kill in the middle of a write leaves a folder without its last file.
    (tmp_path / "work" / "checkpoint-5").mkdir()
    state = torch.random.get_rng_state()
    with at_micro_batch(10**9, stop) as calls:
        report = recover(model, config=config, data=WINDOWS, work_dir=tmp_path / "work")
    assert len(calls) == 2 * (7 - 4)
    assert report.resumed_from == 4
    assert (report.losses, report.validation) == (expected.losses, expected.validation)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not changed(model, weights(whole))
    again = tiny_model()
    assert recover(again, config=config, data=WINDOWS, work_dir=tmp_path / "work").resumed_from == 7
    assert not changed(again, weights(whole))


def test_a_work_folder_that_was_moved_keeps_the_best_step(tmp_path):
    # So high a rate that step 2 is the best of 6.
    config = RecoverConfig(**QUICK | {"lr": 0.1})
    whole = tiny_model()
    assert recover(whole, config=config, data=WINDOWS, work_dir=tmp_path / "whole").best_step == 2

    def moved(name):
        model = tiny_model()
        (tmp_path / name).rename(tmp_path / "moved")
        report = recover(model, config=config, data=WINDOWS, work_dir=tmp_path / "moved")
        assert report.best_step == 2
        assert not changed(model, weights(whole))
        return report.resumed_from

    assert moved("whole") == 6
    shutil.rmtree(tmp_path / "moved" / "checkpoint-2")
    with pytest.raises(FileNotFoundError, match=r"adapters of the best step are gone: expected .*moved/checkpoint-2/"):
        recover(tiny_model(), config=config, data=WINDOWS, work_dir=tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved")
    with at_micro_batch(11, stop), pytest.raises(KeyboardInterrupt):
        recover(tiny_model(), config=config, data=WINDOWS, work_dir=tmp_path / "half")
    assert moved("half") == 4
    assert [path.name for path in list_checkpoints(tmp_path / "moved")] == ["checkpoint-2", "checkpoint-6"]


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    config = RecoverConfig(**QUICK)
    recover(tiny_model(), config=config, data=WINDOWS, work_dir=tmp_path / "work")
    other = RecoverConfig(**QUICK | {"lr": 0.5, "lora_r": 4})
    with pytest.raises(ValueError, match=r"other settings: lora_r 8, now 4, lr 0\.01, now 0\.5"):
        recover(tiny_model(), config=other, data=WINDOWS, work_dir=tmp_path / "work")
    with pytest.raises(ValueError, match="other settings: model '"):
        recover(tiny_model(seed=4), config=config, data=WINDOWS, work_dir=tmp_path / "work")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other things than a recovery"):
        recover(tiny_model(), config=config, data=WINDOWS, work_dir=tmp_path)


def nan_at(number):
    return at_micro_batch(number, lambda loss: loss * torch.nan)


def test_a_loss_that_is_not_finite_stops_and_the_best_validated_step_is_kept(tmp_path):
    # So high a rate that step 2 is better than step 4, after which it ends.
    config = RecoverConfig(**QUICK | {"lr": 0.1})
    model = tiny_model()
    with nan_at(9):
        report = recover(model, config=config, data=WINDOWS, work_dir=tmp_path)
    assert (report.steps, report.best_step, list(report.validation)) == (4, 2, [0, 2, 4])
    assert "stopped early: the gradient of step 5 is not finite" in str(report)
    assert report.to_dict()["stopped early"] == report.stopped
    (warning,) = training_warnings(report)
    assert "the weights are those of step 2" in warning
    expected = attach(tiny_model(), config)
    training._load_adapters(expected, tmp_path / "checkpoint-2")
    assert not changed(model, weights(detach(expected, merge=True)))


def test_a_loss_that_is_not_finite_names_the_last_good_state_where_none_was_better(tmp_path):
    model = tiny_model()
    before = weights(model)
    # Step 4 is not known to be good: no whole step came after it.
    unvalidated = RecoverConfig(**QUICK | {"val_rows": 0})
    message = (
        r"gradient of step 5 is not finite: training stopped; .*state: step 2, adapters in \S+/checkpoint-2; .*delete"
    )
    with nan_at(9), pytest.raises(FloatingPointError, match=f"{message} {tmp_path}/first and begin anew"):
        recover(model, config=unvalidated, data=WINDOWS, work_dir=tmp_path / "first")
    assert (tmp_path / "first" / "checkpoint-2" / training.ADAPTER_FILE).is_file()
    assert not changed(model, before)
    # Validated, but worse than the start, which knows the text by heart.
    rows = WINDOWS[:1].repeat(10, 1)
    recover(model, config=RecoverConfig(**QUICK | {"max_steps": 20, "val_rows": 0}), data=rows)
    with nan_at(9), pytest.raises(FloatingPointError, match=r"good state: step 4, adapters in \S+/checkpoint-4; "):
        recover(model, config=RecoverConfig(**QUICK | {"lr": 1.0}), data=rows, work_dir=tmp_path / "second")
    broken = tiny_model()
    broken.model.layers[2].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"loss of step 1 is nan: .*state: none; no checkpoint was written"):
        recover(broken, config=unvalidated, data=WINDOWS)


def test_a_full_disk_names_the_state_that_is_kept(tmp_path):
    model = tiny_model()
    save, calls = torch.save, []

    def full(*arguments, **options):
        calls.append(1)
        if training_step["step"] >= 4:
            raise RuntimeError("PytorchStreamWriter failed writing file")
        return save(*arguments, **options)

    training_step = {"step": 0}
    original = training.LoraTrainer._save_checkpoint

    def noted(self, *arguments, **options):
        training_step["step"] = self.state.global_step
        return original(self, *arguments, **options)

    with (
        mock.patch.object(torch, "save", full),
        mock.patch.object(training.LoraTrainer, "_save_checkpoint", noted),
        pytest.raises(OSError, match=r"checkpoint of step 4 could not be written .*the state of step 2 is kept in"),
    ):
        recover(model, config=RecoverConfig(**QUICK), data=WINDOWS, work_dir=tmp_path)
    assert calls
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / "checkpoint-4").exists()
    assert recover(model, config=RecoverConfig(**QUICK), data=WINDOWS, work_dir=tmp_path).resumed_from == 2
