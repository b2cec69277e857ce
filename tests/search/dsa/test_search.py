"""The search for an allocation function from statistics to a winner: counts, resumption, workers, correlation."""

import json
import os
from dataclasses import replace

import pytest
import torch

optuna = pytest.importorskip("optuna")
pytest.importorskip("scipy")

import pruneengine as pe  # noqa: E402
from pruneengine.data.samples import Samples  # noqa: E402
from pruneengine.search.dsa import search as dsa  # noqa: E402
from pruneengine.search.dsa.config import DsaConfig  # noqa: E402
from pruneengine.search.dsa.finals import spread_over  # noqa: E402
from pruneengine.search.dsa.objective import SparseObjective  # noqa: E402
from pruneengine.search.run import SearchRun  # noqa: E402
from tests.helpers.tiny import tiny_model, tiny_tokens  # noqa: E402

OPTIONS = {
    "sparsity": 0.5, "trials": 24, "population": 6, "seqlen": 24, "windows": 8, "held_out": 0.25, "segment": 8,
    "nsamples": 4, "calibration_seqlen": 16, "finalists": 2, "correlate": 0,
}  # fmt: skip


def config(**changes):
    return DsaConfig(**(OPTIONS | changes))


def texts():
    def samples(count, length, seed):
        return Samples(tiny_tokens(count, length, seed), ("text",) * count)

    return pe.SearchTexts({16: samples(4, 16, 1)}, samples(6, 24, 2), samples(2, 24, 3))


def search(run=None, **changes):
    return pe.search(tiny_model(), texts(), config(**changes), run)


def told(result):
    """Everything of the trials that is not a time."""
    return [(t.number, t.state, t.function, t.estimate, t.levels, t.origin, t.illegal) for t in result.trials]


@pytest.fixture(scope="module")
def found():
    return search(correlate=8)


def over_all(judged, config):
    """The mean loss over all windows."""
    seen, kept = config.search_windows, config.held_out_windows
    return (judged.full * seen + judged.held_out * kept) / (seen + kept)


def test_the_winner_is_best_over_all_windows(found):
    assert over_all(found.winner, found.config) == min(over_all(judged, found.config) for judged in found.finalists)
    names = {judged.entrant.name for judged in found.finalists}
    assert {"uniform", "owl", "dsa"} < names
    complete = sorted((t.value, t.number) for t in found.trials if t.segments and t.state == "complete")
    assert {f"trial {number}" for _, number in complete[:2]} <= names


def test_losses_of_finalists_are_those_of_real_prunes(found):
    for judged in (found.winner, found.finalists[-1]):
        model = tiny_model()
        (calibration,) = texts().pool.values()
        dense = pe.perplexity(model, texts().held_out).nll
        assert dense == pytest.approx(found.dense["held out"])
        pe.sparsify(model, calibration, config().sparse_config, plan=judged.plan)
        assert pe.perplexity(model, texts().held_out).nll - dense == pytest.approx(judged.held_out, abs=1e-6)
        assert judged.plan.reached == pytest.approx(0.5, abs=1e-4)


def test_every_trial_is_counted_once(found):
    counts = found.counts
    assert counts["drawn"] == 24 == len(found.trials)
    assert counts["drawn"] == counts["distinct allocations"] + counts["repeats"] + counts["invalid"]
    assert counts["distinct allocations"] == counts["stopped early"] + counts["evaluated to the end"]
    assert counts["not finite"] == 0
    evaluated = [t.levels for t in found.trials if t.segments]
    assert len(set(evaluated)) == len(evaluated)
    assert all(t.segments == found.segments for t in found.trials if t.segments and t.state == "complete")
    assert all(t.segments < found.segments for t in found.trials if t.state == "pruned")


def test_the_result_is_plain_values(found):
    values = json.loads(json.dumps(found.to_dict()))
    assert values["method"] == "dsa"
    assert values["best"]["held_out"] == found.winner.held_out
    assert DsaConfig.from_dict(values["config"]) == found.config
    assert len(values["best"]["sparsities"]) == 3
    assert sum(values["best"]["sparsities"]) / 3 == pytest.approx(0.5)
    assert {"statistics", "trials", "finalists", "trials: forward", "trials: score"} <= values["seconds"].keys()
    assert values["correlation"]["words"] == found.correlation.in_words()


def test_the_correlation_is_that_of_its_points(found):
    from scipy.stats import spearmanr

    points = found.correlation.points
    assert len(points) == len({name for name, _, _ in points}) == 8
    expected = spearmanr([fast for _, fast, _ in points], [full for _, _, full in points]).statistic
    assert found.correlation.rho == pytest.approx(expected)
    assert found.warnings == (() if expected >= 0.8 else (found.correlation.in_words(),))
    assert ("twice as many" in found.correlation.in_words()) == (expected < 0.8)
    names = [judged.entrant.name for judged in found.finalists]
    assert len(set(names)) == len(names)
    assert {name for name, _, _ in points} <= set(names)
    assert len(names) == 8 or expected < 0.8


def test_any_allocation_that_was_pruned_in_full_may_win(monkeypatch):
    from pruneengine.search.dsa.finals import FullPruneJudge

    judged = FullPruneJudge._judged

    def turned(self, entrant):
        loss = -entrant.fast if entrant.name.startswith("trial") else 1e3
        return replace(judged(self, entrant), full=loss, held_out=loss)

    monkeypatch.setattr(FullPruneJudge, "_judged", turned)
    result = search(correlate=8)
    trials = {name: fast for name, fast, _ in result.correlation.points if name.startswith("trial")}
    assert len(trials) == 5
    assert result.winner.entrant.name == max(trials, key=trials.get)
    names = [judged.entrant.name for judged in result.finalists]
    assert len(set(names)) == len(names)
    assert names[0] in result.allocations


def test_the_model_is_not_changed():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dsa.search_dsa(model, texts(), config(trials=4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_search_that_was_killed_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    unbroken = search(SearchRun("a", f"journal:{tmp_path / 'a.journal'}"))
    run = SearchRun("a", f"journal:{tmp_path / 'b.journal'}")
    evaluate, calls = SparseObjective.evaluate, []

    def killed(self, *arguments):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return evaluate(self, *arguments)

    monkeypatch.setattr(SparseObjective, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        search(run)
    monkeypatch.setattr(SparseObjective, "evaluate", evaluate)
    resumed = search(run)
    assert [t.state for t in resumed.trials].count("fail") == 1
    kept = [row[1:] for row in told(resumed) if row[1] != "fail"]
    assert kept == [row[1:] for row in told(unbroken)]
    assert resumed.function == unbroken.function
    assert resumed.winner.held_out == unbroken.winner.held_out


def test_a_stop_while_a_function_is_drawn_costs_no_trial(monkeypatch, tmp_path):
    from pruneengine.search.dsa import sampler

    run = SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    suggest, calls = sampler.suggest, []

    def stopped(trial):
        calls.append(trial)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return suggest(trial)

    monkeypatch.setattr(sampler, "suggest", stopped)
    with pytest.raises(KeyboardInterrupt):
        search(run, trials=5)
    assert search(run, trials=5).counts["drawn"] == 5


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    run = SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    first = search(run, trials=8)
    monkeypatch.setattr(SparseObjective, "evaluate", lambda *_: pytest.fail("evaluated again"))
    monkeypatch.setattr("pruneengine.search.dsa.finals.sparsify", lambda *_, **__: pytest.fail("pruned again"))
    again = search(run, trials=8)
    assert told(again) == told(first)
    assert again.finalists == first.finalists


def test_another_search_of_this_name_is_refused(tmp_path):
    run = SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    search(run, trials=2)
    with pytest.raises(ValueError, match=r"its sparsity is 0.5, this search's is 0.6"):
        search(run, trials=2, sparsity=0.6)


def test_random_search_is_the_same_loop_without_parents():
    drawn = search(sampler="random")
    evolved = search()
    first = [t.function for t in drawn.trials]
    assert len(set(first)) == 24
    # Until its population is complete, evolution draws at random too.
    assert first[:6] == [t.function for t in evolved.trials][:6]
    assert first != [t.function for t in evolved.trials]


def test_a_seed_decides():
    assert told(search()) == told(search())
    assert told(search()) != told(search(seed=1))


def test_without_a_stop_every_allocation_is_run_to_the_end():
    counts = search(stop=None).counts
    assert counts["stopped early"] == 0
    assert counts["evaluated to the end"] == counts["distinct allocations"] > 5


def test_a_plateau_ends_the_search():
    result = search(trials=200, plateau=6)
    last = [t for t in result.trials if t.state != "fail"][-1].number
    assert result.plateau is not None
    assert last - result.plateau == 6
    assert result.plateau == min((t.value, t.number) for t in result.trials if t.segments and t.state == "complete")[1]


@pytest.mark.fresh_process
def test_workers_share_a_study(tmp_path):
    result = search(SearchRun("w", f"journal:{tmp_path / 'w.journal'}", workers=2), trials=10)
    assert result.counts["drawn"] >= 10
    study = optuna.load_study(
        study_name="w", storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "w.journal"))
        )
    )  # fmt: skip
    assert {t.user_attrs["worker"].rpartition(":")[2] for t in study.trials} >= {str(os.getpid())}
    best = min(over_all(judged, result.config) for judged in result.finalists)
    assert over_all(result.winner, result.config) == best


@pytest.mark.parametrize("pruner", ["magnitude", "sparsegpt"])
def test_other_pruners(pruner):
    result = search(pruner=pruner, trials=4)
    assert result.plan.method == pruner
    assert result.plan.reached == pytest.approx(0.5, abs=1e-4)


def test_a_pattern_has_whole_numbers_in_every_layer():
    model = tiny_model(hidden_size=48, head_dim=8)
    result = pe.search(model, texts(), config(sparsity=None, pattern="4:8", trials=12))
    assert result.config.sparsity == 0.5
    for judged in result.finalists:
        assert {share * 8 % 1 for share in result.allocations[judged.entrant.name]} == {0.0}
    assert all(level % 32 == 0 for t in result.trials for level in t.levels)
    assert any(len(set(t.levels)) > 1 for t in result.trials), "some layers differ by a whole weight"


def test_what_comes_to_the_uniform_plan_is_not_called_a_function():
    result = pe.search(tiny_model(num_hidden_layers=1), texts(), config(trials=2))
    assert [judged.entrant.name for judged in result.finalists] == ["uniform", "owl", "dsa"]
    assert result.function is None


def test_an_allocation_that_ruins_the_model_does_not_end_the_search(monkeypatch):
    from pruneengine.search.dsa import finals

    def ruined(model, calibration, config, plan):
        if plan.allocation != "uniform":
            raise ValueError("what enters a linear is not finite")
        return pe.sparsify(model, calibration, config, plan=plan)

    monkeypatch.setattr(finals, "sparsify", ruined)
    result = search(trials=6, correlate=6)
    assert [judged.entrant.name for judged in result.finalists] == ["uniform"]
    assert result.correlation.rho is None
    left_out = [warning for warning in result.warnings if "could not be pruned in full and is left out" in warning]
    assert left_out[0].startswith("owl could not")
    assert left_out[0].endswith("what enters a linear is not finite")
    monkeypatch.setattr(finals, "sparsify", lambda *given, plan: ruined(*given, replace(plan, allocation="any")))
    with pytest.raises(ValueError, match="no allocation could be pruned in full: what enters"):
        search(trials=2)


def test_positions_are_spread_over_the_ranks():
    values = [5.0, 1.0, 9.0, 3.0, 7.0, 2.0]
    assert [values[p] for p in spread_over(3, values, ())] == [2.0, 5.0, 9.0]
    assert [values[p] for p in spread_over(9, values, [1.0, 2.0])] == [3.0, 5.0, 7.0, 9.0]
    assert spread_over(0, values, ()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 0.0}, "sparsity 0 leaves nothing to allocate"),
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"sparsity": 0.995}, r"sparsity 0.995 leaves nothing to allocate: expected a fraction in \(0, 0.99\]"),
        ({"sparsity": None}, "sparsity is missing"),
        ({"pruner": "owl"}, "unknown pruner 'owl'; choose from wanda, magnitude, sparsegpt"),
        ({"sampler": "tpe"}, "unknown sampler 'tpe'; choose from evolution, random"),
        ({"trials": 0}, "trials must be a whole number from 1, got 0"),
        ({"population": 1}, "population must be a whole number from 2, got 1"),
        ({"plateau": 0}, "plateau must be a whole number from 1, got 0"),
        ({"stop": 1.5}, r"stop is a p-value, expected in \(0, 1\) or none, got 1.5"),
        ({"held_out": 0.01}, "held_out 0.01 of 8 windows is 0: expected at least one"),
        ({"held_out": 2}, r"held_out must lie in \[0, 1\], got 2"),
        ({"correlate": 2}, "a rank correlation needs at least 3 allocations"),
        ({"pattern": "4:2"}, "keeps 4 of 2"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "pattern 2:4 has sparsity 0.5, got 0.6"),
        ({"sparsity": None, "pattern": "2:4"}, "pattern 2:4 leaves nothing .* at most 0.24, .* groups of at least 5"),
        ({"mutation": -0.1}, r"mutation must lie in \[0, 1\], got -0.1"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_rows_that_are_no_whole_groups_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(dsa, "calibrate", lambda *_, **__: pytest.fail("calibrated"))
    with pytest.raises(ValueError, match="groups of 16 need input dimensions that 16 divides"):
        search(sparsity=None, pattern="8:16")


def test_the_loop_ends_at_the_deadline():
    result = search(SearchRun("late", time_limit=1e-6))
    assert result.trials == ()
    assert result.winner.entrant.name in ("uniform", "owl", "dsa")
