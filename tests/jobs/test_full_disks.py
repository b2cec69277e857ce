"""A full disk: told before work where it can be known, and never the end of finished work."""

from collections import namedtuple

import pytest

from pruneengine.common import files
from pruneengine.jobs import checkpoint_job
from tests.cli.test_prune import prune_arguments, run
from tests.cli.test_search import arguments as search_arguments

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def full(monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _folder: Usage(10**6, 10**6 - 1000, 1000))


def commands(folder, texts, out):
    text = ("--eval-text", folder / "text.txt", "--eval-seqlen", 32, "--eval-windows", 2)
    return {
        "prune": prune_arguments(folder, "--ratio", 0.4, "--out", out),
        "sparse": prune_arguments(folder, "--sparsity", 0.5, "--out", out),
        "recover": ("recover", folder / "model", "--data", folder / "text.txt", "--max-steps", 1, "--out", out, *text),
        "search": search_arguments(texts, out),
    }


@pytest.mark.parametrize("command", ["prune", "sparse", "recover", "search"])
def test_too_little_room_is_said_before_work(folder, texts, tmp_path, full, command):
    done = run(*commands(folder, texts, tmp_path / "deep" / "out")[command])
    assert done.returncode == 2, done.stderr
    assert "of weights do not fit in" in done.stderr
    assert "deciding" not in done.stderr
    assert "training" not in done.stderr
    assert not (tmp_path / "deep" / "out").exists()


def test_a_pruned_model_needs_less_room_than_the_dense_one(folder, tmp_path, monkeypatch):
    size = (folder / "model" / "model.safetensors").stat().st_size
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _folder: Usage(10**9, 0, int(size * 0.9)))
    options = ("--method", "magnitude_l1", "--eval-text", "none", "--no-proof", "--round-to", 1)
    done = run("prune", folder / "model", "--ratio", 0.4, "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr


def test_a_report_that_fails_leaves_the_checkpoint_and_says_so(folder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_job, "write_report", fail)
    done = run(*prune_arguments(folder, "--ratio", 0.4, "--no-proof", "--out", tmp_path / "out"))
    assert done.returncode == 2
    assert f"The checkpoint is complete and saved in {tmp_path / 'out'}; only its report is missing." in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_statistics_that_do_not_fit_cost_a_warning_and_not_the_prune(folder, tmp_path, monkeypatch):
    def fail(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pruneengine.calibration.statistics.Statistics.save", fail)
    options = ("--ratio", 0.4, "--no-proof", "--statistics", tmp_path / "s.safetensors", "--out", tmp_path / "out")
    done = run(*prune_arguments(folder, "--method", "wanda", *options))
    assert done.returncode == 0, done.stderr
    assert "the statistics could not be kept in" in done.stderr
    assert (tmp_path / "out" / "report.json").is_file()
