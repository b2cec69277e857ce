"""How a search ends, and what it says of it: all trials, a plateau, the time limit."""

import pytest

pytest.importorskip("optuna")
pytest.importorskip("scipy")

from pruneengine.search.run import SearchRun
from tests.search.dsa.test_search import search


def test_how_a_search_ended_is_said():
    everything = search(trials=3)
    assert (everything.ended, everything.plateau) == ("trials", None)
    assert everything.outcome == "The search ended with its last trial."
    early = search(trials=200, plateau=6)
    assert early.ended == "plateau"
    assert f"of 200 trials: none after trial {early.plateau} was better" in early.outcome
    assert early.to_dict()["outcome"] == early.outcome
    late = search(SearchRun("late", time_limit=1e-6))
    assert late.outcome == "The time limit ended the search after 0 of 24 trials."


def test_a_plateau_without_a_complete_trial_is_said(monkeypatch):
    from pruneengine.search.dsa import trials

    monkeypatch.setattr(trials, "is_worse", lambda *_: True)
    result = search(trials=50, plateau=4)
    assert result.counts["evaluated to the end"] == 0
    assert (result.ended, result.plateau) == ("plateau", None)
    assert result.outcome.startswith(
        "The search ended early, after 4 of 50 trials: no trial's allocation was evaluated"
    )
    assert any(warning.startswith("no trial's allocation was evaluated to the end") for warning in result.warnings)
    assert result.winner.entrant.name in ("uniform", "owl", "dsa")
