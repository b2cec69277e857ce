"""The journal of a study: Optuna's format, whole after a kill and after a torn entry."""

import os

import pytest

optuna = pytest.importorskip("optuna")

from optuna.storages import JournalStorage  # noqa: E402
from optuna.storages.journal import JournalFileBackend  # noqa: E402

from pruneengine.search import journal as module  # noqa: E402


def study_of(backend):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(study_name="s", storage=JournalStorage(backend), load_if_exists=True)


def tell(study, value):
    trial = study.ask()
    trial.suggest_categorical("x", (1, 2))
    trial.set_user_attr("note", "ä")
    study.tell(trial, value)


def test_optuna_reads_it_and_it_reads_optunas(tmp_path):
    path = str(tmp_path / "s.journal")
    tell(study_of(module.Journal(path)), 1.0)
    tell(study_of(JournalFileBackend(path)), 2.0)
    tell(study_of(module.Journal(path)), 3.0)
    assert [t.value for t in study_of(JournalFileBackend(path)).trials] == [1.0, 2.0, 3.0]
    assert study_of(module.Journal(path)).trials[0].user_attrs == {"note": "ä"}


def test_every_entry_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "s.journal"
    study = study_of(module.Journal(str(path)))
    before = len(path.read_bytes().splitlines())
    study.ask()
    # Read beside the writer, as after a kill: nothing waits in a buffer.
    assert len(path.read_bytes().splitlines()) == before + 1
    assert len(study_of(JournalFileBackend(str(path))).trials) == 1


def test_a_torn_entry_is_cut_away(tmp_path):
    path = tmp_path / "s.journal"
    tell(study_of(module.Journal(str(path))), 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"wor')
    tell(study_of(module.Journal(str(path))), 2.0)
    assert path.read_bytes().startswith(whole)
    assert [t.value for t in study_of(module.Journal(str(path))).trials] == [1.0, 2.0]


def test_the_disk_is_not_waited_for_at_every_entry(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(module.os, "fsync", lambda _file: waits.append(1))
    study = study_of(module.Journal(str(tmp_path / "s.journal")))
    for value in range(5):
        tell(study, float(value))
    assert len(waits) <= 1
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    tell(study, 6.0)
    assert len(waits) >= 4


def test_a_lock_of_a_killed_search_that_points_nowhere_is_taken_away(tmp_path):
    path, lock = tmp_path / "runs" / "s.journal", tmp_path / "runs" / "s.journal.lock"
    path.parent.mkdir()
    tell(study_of(module.Journal(str(path))), 1.0)
    lock.symlink_to("runs/s.journal")
    long_ago = os.lstat(lock).st_mtime - 60
    os.utime(lock, (long_ago, long_ago), follow_symlinks=False)
    assert [t.value for t in study_of(module.Journal(str(path))).trials] == [1.0]
    assert not lock.is_symlink()
