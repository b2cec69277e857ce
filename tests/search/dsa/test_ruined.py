"""Allocations of a search under which the loss is not finite: run once, counted apart, in no one's way."""

import pytest

optuna = pytest.importorskip("optuna")
pytest.importorskip("scipy")

from pruneengine.report.pages.search_dsa import dsa_page  # noqa: E402
from pruneengine.search.dsa.history import FOUND, NOT_FINITE, TrialHistory  # noqa: E402
from pruneengine.search.dsa.objective import SparseObjective  # noqa: E402
from pruneengine.search.run import SearchRun  # noqa: E402
from pruneengine.search.study import ILLEGAL, reopen_study  # noqa: E402
from tests.search.dsa.test_search import search  # noqa: E402


@pytest.fixture
def broken(monkeypatch):
    """All but the fixed allocations, which come first, have losses that are no numbers; the levels that were run."""
    evaluate, levels_run = SparseObjective.evaluate, []

    def not_finite(self, levels, *stop):
        levels_run.append(tuple(levels))
        found = evaluate(self, levels, *stop)
        return found if len(levels_run) <= 3 else type(found)((0.5, float("nan")), True, found.seconds)

    monkeypatch.setattr(SparseObjective, "evaluate", not_finite)
    return levels_run


def test_a_ruined_allocation_is_run_once_and_counted_apart(broken):
    result = search(trials=40, plateau=None)
    run, counts = broken[3:], result.counts
    repeats = [trial for trial in result.trials if trial.origin == "repeat" and trial.ruined]
    assert len(run) == len(set(run)) > 5
    assert repeats
    assert {trial.levels for trial in repeats} <= set(run)
    assert counts["not finite"] == counts["distinct allocations"] == len(run)
    assert counts["drawn"] == counts["distinct allocations"] + counts["repeats"] + counts["invalid"] == 40
    assert counts["stopped early"] == counts["evaluated to the end"] == 0
    assert counts["invalid"] == sum("do not tell the layers apart" in (trial.illegal or "") for trial in result.trials)
    assert {trial.segments for trial in result.trials if trial.evaluated} == {2}
    assert result.winner.entrant.name in ("uniform", "owl", "dsa")
    table = next(section for section in dsa_page(result.to_dict()).sections if section.title == "History").tables[0]
    assert (str(len(run)), "of them ruined the model: the loss is not finite") in table.rows


def test_a_resumed_search_knows_them(broken, tmp_path):
    run = SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    search(run, trials=12, plateau=None)
    search(run, trials=24, plateau=None)
    found = broken[3:]
    assert len(found) == len(set(found))


def test_a_fixed_allocation_that_is_ruined_stops_no_other(monkeypatch):
    evaluate, calls = SparseObjective.evaluate, []

    def not_finite(self, levels, *stop):
        calls.append(levels)
        found = evaluate(self, levels, *stop)
        return found if len(calls) != 1 else type(found)((float("nan"),), True, found.seconds)

    monkeypatch.setattr(SparseObjective, "evaluate", not_finite)
    counts = search().counts
    assert counts["stopped early"] > 0
    assert counts["not finite"] == 0


def test_a_study_that_kept_no_levels_of_them_still_reads(tmp_path):
    run = SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    search(run, trials=2)
    study = reopen_study(run.study, run.storage)
    trial = study.ask()
    genes = study.trials[0].distributions
    for gene, distribution in genes.items():
        trial.suggest_categorical(gene, distribution.choices)
    trial.set_user_attr(ILLEGAL, NOT_FINITE)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert FOUND not in study.trials[-1].user_attrs
    assert TrialHistory().update(study).ruined == set()
    counts = search(run, trials=3).counts
    assert counts["drawn"] == 3
    assert counts["not finite"] == 1
    assert counts["drawn"] == counts["distinct allocations"] + counts["repeats"] + counts["invalid"]
