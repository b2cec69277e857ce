"""Trials of machines and processes that are gone, or are thought to be, in both searches."""

import os
import signal
from dataclasses import replace

import pytest

optuna = pytest.importorskip("optuna")
pytest.importorskip("scipy")

from pruneengine.search.adapruner.objective import Objective  # noqa: E402
from pruneengine.search.dsa import search as dsa  # noqa: E402
from pruneengine.search.dsa.objective import SparseObjective  # noqa: E402
from pruneengine.search.run import SearchRun  # noqa: E402
from pruneengine.search.study import START, WORKER, fail_abandoned, reopen_study, running  # noqa: E402
from tests.helpers import forked  # noqa: E402
from tests.helpers.tiny import tiny_model  # noqa: E402
from tests.search.adapruner import test_search as adapruner  # noqa: E402
from tests.search.dsa.test_search import config, search, texts  # noqa: E402


def test_a_trial_that_another_machine_took_for_lost_is_drawn_again(tmp_path, monkeypatch):
    run = SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    evaluate, calls = SparseObjective.evaluate, []

    def overtaken(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            there = reopen_study(run.study, run.storage)
            (trial,) = running(there)
            there.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return evaluate(self, *arguments)

    monkeypatch.setattr(SparseObjective, "evaluate", overtaken)
    result = search(run, trials=6)
    assert [t.state for t in result.trials].count("fail") == 1
    assert result.counts["drawn"] == 6


def test_trials_that_others_left_are_said(tmp_path):
    run = SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    search(run, trials=1)
    reopen_study(run.study, run.storage).ask().set_user_attr(WORKER, "another-host:7")
    lines = []
    result = dsa.search_dsa(tiny_model(), texts(), config(trials=3), run, say=lines.append)
    assert result.counts["drawn"] == 2
    assert any(line.startswith("1 trial(s) of other processes still run, or were lost") for line in lines)


def test_a_search_over_plans_draws_again_what_another_machine_took_for_lost(tmp_path, monkeypatch):
    run = adapruner.run_in(tmp_path)
    evaluate, overtaken = Objective.evaluate, []

    def evaluated(self, *arguments):
        there = None if overtaken else reopen_study(run.study, run.storage)
        if there and (left := running(there)):
            overtaken.append(left[0].number)
            there.tell(left[0].number, state=optuna.trial.TrialState.FAIL)
        return evaluate(self, *arguments)

    monkeypatch.setattr(Objective, "evaluate", evaluated)
    found = adapruner.search(tiny_model(), adapruner.TEXTS, adapruner.CONFIG, run)
    assert [t.number for t in found.trials if t.state == "fail"] == overtaken
    assert len(overtaken) == 1
    assert len([t for t in found.trials if t.state != "fail"]) == adapruner.CONFIG.trials


def test_a_start_that_was_lost_is_given_again(tmp_path):
    run, options = adapruner.run_in(tmp_path), replace(adapruner.CONFIG, trials=1)
    adapruner.search(tiny_model(), adapruner.TEXTS, options, run)
    study = reopen_study(run.study, run.storage)
    lost = study.ask()
    assert lost.user_attrs[START]
    lost.set_user_attr(WORKER, "another-host:7")
    given = study.get_trials()[lost.number].system_attrs["fixed_params"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pruneengine.search.study.LEASE_SECONDS", 0.0)
        patch.setattr("pruneengine.search.study.LEASE_TRIALS", 0)
        adapruner.search(tiny_model(), adapruner.TEXTS, replace(options, trials=2), run)
    again = [t for t in study.get_trials() if t.system_attrs.get("fixed_params") == given]
    assert len(again) == 2
    assert again[0].state.name == "FAIL"
    assert fail_abandoned(study) == 0


def search_until_killed(folder):
    ask = optuna.Study.ask

    def killed(study):
        trial = ask(study)
        if trial.number == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return trial

    optuna.Study.ask = killed
    adapruner.search(tiny_model(), adapruner.TEXTS, adapruner.CONFIG, adapruner.run_in(folder))


def test_a_trial_of_a_process_killed_before_it_signed_is_drawn_again_at_once(tmp_path):
    searching = forked.parent().Process(target=search_until_killed, args=(tmp_path,))
    searching.start()
    searching.join()
    assert searching.exitcode == -signal.SIGKILL
    resumed, unbroken = (
        adapruner.search(tiny_model(), adapruner.TEXTS, adapruner.CONFIG, adapruner.run_in(tmp_path, name))
        for name in ("study", "unbroken")
    )
    assert [trial.number for trial in resumed.trials if trial.state == "fail"] == [9]
    drawn = [trial.params for trial in resumed.trials if trial.state != "fail"]
    assert drawn == [trial.params for trial in unbroken.trials]
