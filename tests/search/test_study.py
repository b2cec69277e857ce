"""The study of a search: storages, identity, abandoned trials, samplers that a restart does not change."""

import os
import socket
import sys
import time
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

optuna = pytest.importorskip("optuna")

from pruneengine.search import study as module  # noqa: E402
from pruneengine.search.records import trial_records  # noqa: E402
from pruneengine.search.run import SearchRun  # noqa: E402

IDENTITY = {"model": "abc", "ratio": 0.2, "counts": (4, 8)}


def journal(tmp_path, name="study.journal"):
    return f"journal:{tmp_path / name}"


def quadratic(study, trials, kind="tpe", seed=0, startup=3):
    for _ in range(trials):
        study.sampler = module.sampler(kind, seed, module.counted(study), startup)
        trial = study.ask()
        x = trial.suggest_float("x", -1, 1)
        if trial.suggest_categorical("part", ("plain", "shifted")) == "shifted":
            x += trial.suggest_float("shift", 0, 1)
        study.tell(trial, x * x)
    return [trial.params for trial in study.trials if trial.state.name == "COMPLETE"]


@pytest.mark.parametrize("storage", ["journal:{}/s.journal", "sqlite:///{}/s.db"])
def test_a_study_goes_on_where_it_was(tmp_path, storage):
    url = storage.format(tmp_path)
    first = quadratic(module.open_study("s", url, IDENTITY), 3)
    again = module.open_study("s", url, IDENTITY)
    assert [trial.params for trial in again.trials] == first
    assert module.counted(again) == 3


def test_another_identity_is_refused_and_named(tmp_path):
    module.open_study("s", journal(tmp_path), IDENTITY)
    with pytest.raises(ValueError, match=r"its ratio is 0.2, this search's is 0.5; choose another --study"):
        module.open_study("s", journal(tmp_path), IDENTITY | {"ratio": 0.5})
    assert module.open_study("other", journal(tmp_path), IDENTITY | {"ratio": 0.5}).user_attrs


@pytest.mark.parametrize("storage", ["study.journal", "journal:", "", "journal:redis://host/0"])
def test_a_storage_of_unknown_kind_is_refused(storage):
    with pytest.raises(ValueError, match="expected journal:FILE or a database URL"):
        module.open_study("s", storage, IDENTITY)


@pytest.mark.parametrize("storage", ["nosuchdb://x/y", "sqlite:/"])
def test_a_url_of_no_database_is_refused_before_a_model_is_loaded(storage):
    with pytest.raises(ValueError, match="is no URL of a known database"):
        SearchRun(storage=storage)


def test_a_missing_driver_is_named_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(ImportError, match=r"postgresql\+psycopg2://me:\*\*\*@host/db needs the package psycopg2"):
        SearchRun(storage="postgresql+psycopg2://me:secret@host/db")


@pytest.mark.parametrize("workers", [0, 10**20])
def test_numbers_of_workers_that_cannot_be_are_refused_at_once(workers):
    with pytest.raises(ValueError, match=rf"workers must be at (least 1|most 1024), got {workers}"):
        SearchRun(storage="journal:s", workers=workers)


def test_no_message_shows_a_password(monkeypatch):
    def refuse(url):
        raise RuntimeError(f"no connection to {url}")

    monkeypatch.setattr(module, "_storage", refuse)
    for url in (
        "postgresql://me:sec/r@t@host:5432/db",
        "mysql://host/db?user=me&password=sec/r@t&ssl=1",
        "redis://:sec@h",
    ):
        with pytest.raises(ConnectionError, match=r"\*\*\*") as raised:
            module.open_study("s", url, IDENTITY)
        assert "sec" not in str(raised.value)
        assert "host" in str(raised.value) or "@h" in str(raised.value)


def test_a_relative_journal_is_locked_by_a_link_that_leads_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    symlink = os.symlink
    monkeypatch.setattr(os, "symlink", lambda target, link: (seen.append((target, link)), symlink(target, link))[1])
    study = module.open_study("s", "journal:runs/s.journal", IDENTITY)
    assert module.reopen_study("s", "journal:runs/s.journal").study_name == study.study_name
    assert seen
    assert {target for target, _ in seen} == {str(tmp_path / "runs" / "s.journal")}


@pytest.mark.parametrize("storage", ["sqlite:////no/such/folder/s.db", "journal:/proc/none/s.journal"])
def test_a_storage_out_of_reach_is_one_line(storage):
    with pytest.raises(ConnectionError, match="cannot be used") as raised:
        module.open_study("s", storage, IDENTITY)
    assert "\n" not in str(raised.value)


def test_trials_of_dead_processes_here_are_failed(tmp_path):
    study = module.open_study("s", journal(tmp_path), IDENTITY)
    dead, alive, elsewhere = (study.ask() for _ in range(3))
    dead.set_user_attr(module.WORKER, f"{socket.gethostname()}:{2**22 + 1}")
    alive.set_user_attr(module.WORKER, module.this_worker())
    elsewhere.set_user_attr(module.WORKER, f"another-host:{os.getpid()}")
    assert module.fail_abandoned(study) == 1
    assert [trial.state.name for trial in study.trials] == ["FAIL", "RUNNING", "RUNNING"]
    assert module.counted(study) == 2


def test_trials_that_nobody_can_be_asked_for_are_failed_once_they_took_too_long(tmp_path, monkeypatch):
    study = module.open_study("s", journal(tmp_path), IDENTITY)
    study.ask().set_user_attr(module.WORKER, "another-host:7")
    study.ask()
    assert module.fail_abandoned(study) == 0
    ended = study.ask()
    time.sleep(0.05)
    study.tell(ended, 1.0)
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.0)
    # Ten times the longest trial is not over yet.
    monkeypatch.setattr(module, "LEASE_TRIALS", 1000)
    assert module.fail_abandoned(study) == 0
    monkeypatch.setattr(module, "LEASE_TRIALS", 0)
    resumed = module.open_study("s", journal(tmp_path), IDENTITY)
    assert [trial.state.name for trial in resumed.trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert module.running(resumed) == []


def test_a_trial_that_nobody_signed_is_lost_with_those_who_were_at_work(tmp_path):
    study = module.open_study("s", journal(tmp_path), IDENTITY)
    study.ask()
    dead = f"{module.AT_WORK}{socket.gethostname()}:{2**22 + 1}"
    with module.at_work(study):
        study.set_user_attr(dead, True)
        assert module.fail_abandoned(study) == 0, "it may be this process's"
    study.set_user_attr(f"{module.AT_WORK}another-host:7", True)
    assert module.fail_abandoned(study) == 0, "it may be another machine's"
    study.set_user_attr(f"{module.AT_WORK}another-host:7", False)
    assert module.fail_abandoned(study) == 1
    assert [trial.state.name for trial in study.trials] == ["FAIL"]


def test_trials_are_signed_by_those_who_ask(tmp_path):
    study = module.open_study("s", journal(tmp_path), IDENTITY)
    assert module.ask(study).user_attrs == {module.WORKER: module.this_worker()}


def test_how_long_a_lost_trial_lay_about_says_nothing(tmp_path, monkeypatch):
    study = module.open_study("s", journal(tmp_path), IDENTITY)
    lost = study.ask()
    time.sleep(0.05)
    study.tell(lost, state=optuna.trial.TrialState.FAIL)
    study.ask().set_user_attr(module.WORKER, "another-host:7")
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.0)
    monkeypatch.setattr(module, "LEASE_TRIALS", 1000)
    assert module.fail_abandoned(study) == 1


def test_a_process_that_has_the_number_of_a_dead_one_is_another(tmp_path, monkeypatch):
    study = module.open_study("s", journal(tmp_path), IDENTITY)
    study.ask().set_user_attr(module.WORKER, module.this_worker())
    assert module.fail_abandoned(study) == 0
    later = SimpleNamespace(now=lambda: datetime.now() + timedelta(days=365))
    monkeypatch.setattr(module, "datetime", later)
    assert module.fail_abandoned(study) == 1


def test_trials_of_older_studies_say_nothing_of_their_cache(tmp_path):
    study = module.open_study("s", journal(tmp_path), IDENTITY)
    study.tell(study.ask(), 1.0)
    new = study.ask()
    new.set_user_attr(module.KV_BYTES, 4608)
    study.tell(new, 2.0)
    assert [trial.kv_bytes for trial in trial_records(study)] == [None, 4608]


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_restarted_search_draws_what_an_unbroken_one_draws(tmp_path, kind):
    unbroken = quadratic(module.open_study("a", journal(tmp_path), IDENTITY), 12, kind)
    quadratic(module.open_study("b", journal(tmp_path), IDENTITY), 7, kind)
    # Killed in the middle of the eighth trial.
    killed = module.open_study("b", journal(tmp_path), IDENTITY)
    killed.ask().set_user_attr(module.WORKER, f"{socket.gethostname()}:{2**22 + 1}")
    resumed = module.open_study("b", journal(tmp_path), IDENTITY)
    module.fail_abandoned(resumed)
    assert quadratic(resumed, 5, kind) == unbroken
    other = quadratic(module.open_study("c", journal(tmp_path), IDENTITY), 12, kind, seed=1)
    assert other != unbroken
