"""The study of what a search costs, on a tiny model: both loops do the same work, and the replay knows its answers."""

import argparse
import json
from dataclasses import replace

import pytest
import torch

import pruneengine as pe
from pruneengine.data.samples import Samples
from tests.helpers.tiny import tiny_model, tiny_tokens

optuna = pytest.importorskip("optuna")
pytest.importorskip("scipy")

from benchmarks.search_cost.naive import STAGES, block_losses, fresh_statistics, naive_trial  # noqa: E402
from benchmarks.search_cost.replay import Recorded, recorded, replay  # noqa: E402
from benchmarks.search_cost.run import (  # noqa: E402
    BESIDE,
    CHANGE,
    TIMES,
    cost_rows,
    replay_rows,
    replay_trials,
    search_seconds,
    table,
    verdicts,
)
from benchmarks.search_cost.study import CostStudy, check_same, drawn, sampled, stages, typical, work  # noqa: E402
from pruneengine.bench.record import GateError, Setting  # noqa: E402
from pruneengine.calibration.calibrate import calibrate  # noqa: E402
from pruneengine.search.adapruner.config import AdaPrunerConfig  # noqa: E402
from pruneengine.search.adapruner.search import SearchTexts, search  # noqa: E402
from pruneengine.search.adapruner.space.candidate import Candidate  # noqa: E402
from pruneengine.search.adapruner.space.subsets import Subset  # noqa: E402
from pruneengine.structured.scores.metric_family import MetricPoint, score_point  # noqa: E402

CONFIG = AdaPrunerConfig(
    ratio=0.4, trials=9, startup=4, pool=8, counts=(4, 6), lengths=(16,), seqlen=20, windows=6, held_out=4,
    selectors=("random-0", "high-loss"), round_to=1, baselines=("wanda", "param_first"), compensate=("none",),
    batch_size=3,
)  # fmt: skip
SETTING = Setting("search_cost", "here", 1, "abc1234", "2026-01-31")


def samples(count, length, seed):
    return Samples(tiny_tokens(count, length, seed), ("text",) * count)


TEXTS = SearchTexts({16: samples(8, 16, 3)}, samples(6, 20, 4), samples(4, 20, 5))


def a_study(cache, **changes):
    whole = Samples(torch.cat([TEXTS.search.tokens, TEXTS.held_out.tokens]), ("text",) * 10)
    return CostStudy(tiny_model(), TEXTS, replace(CONFIG, **changes), whole, windows=2, cache=cache)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    study = a_study(tmp_path_factory.mktemp("cost"))
    return study, study.measure(naive=3)


def test_the_stages_of_a_trial_add_up(measured):
    study, _ = measured
    trials = sampled(study.study)
    assert trials
    for trial in trials:
        found = stages(trial)
        assert found.keys() == {"propose", "decide", "evaluate", "report", "store"}
        # The first stage begins a moment before Optuna's clock does.
        assert sum(found.values()) == pytest.approx(trial.duration.total_seconds(), abs=5e-3)
        assert all(seconds >= 0 for seconds in found.values())


def test_both_loops_find_the_same_losses(measured):
    study, found = measured
    trials = {trial.number: trial for trial in drawn(study.study)}
    assert [stretch["trials"] for stretch in found["stretches"]] == [3, 3, 3]
    assert [trial["trial"] // 3 for trial in found["naive"]] == [0, 1, 2]
    for naive in found["naive"]:
        ours = trials[naive["trial"]].intermediate_values
        assert [naive["losses"][block] for block in sorted(ours)] == pytest.approx(list(ours.values()), abs=1e-4)
        assert naive["difference"] < 1e-4
        assert {*STAGES} <= naive["seconds"].keys()


POINTS = {
    "first": MetricPoint(order="first", tau=0.3),
    "each": MetricPoint(order="each", tau=0.3),
    "second": MetricPoint(order="second", tau=0.3),
    "mix": MetricPoint(order="mix", tau=0.3),
    "blend": MetricPoint(order="mix", share=0.4, moment="variance"),
    "activations": MetricPoint(share=1, moment="variance"),
}


@pytest.mark.parametrize("name", POINTS)
def test_weight_gradients_give_the_statistics_of_the_search(name):
    model, point = tiny_model(), POINTS[name]
    structure, tokens = pe.find_groups(model), samples(5, 16, 3)
    found = fresh_statistics(model, tokens, point, structure, CONFIG)
    expected = calibrate(tiny_model(), tokens, point.needs)
    assert found.tensors.keys() == point.needs
    for quantity, named in found.tensors.items():
        for place in named:
            torch.testing.assert_close(
                found.mean(quantity, place), expected.mean(quantity, place), rtol=1e-4, atol=1e-5, msg=quantity
            )
    scores, wanted = (score_point(tiny_model(), point, each) for each in (found, expected))
    for group in structure.groups:
        torch.testing.assert_close(scores.groups[group.name], wanted.groups[group.name], rtol=1e-3, atol=1e-5)


def test_the_naive_loop_leaves_the_dense_model_alone():
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    candidate = Candidate(Subset(16, "all", 4, "random-0"), POINTS["mix"], kv_groups=1)
    found = naive_trial(model, candidate, samples(4, 16, 3), TEXTS.search, CONFIG)
    assert found.losses.mean() > block_losses(model, TEXTS.search).mean()
    assert found.seconds.keys() == {*STAGES}
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="removed channels turn to zero; got fill 'mean'"):
        naive_trial(model, replace(candidate, fill="mean"), samples(4, 16, 3), TEXTS.search, CONFIG)


def test_what_was_measured_is_not_measured_again(measured, monkeypatch):
    study, found = measured
    monkeypatch.setattr("benchmarks.search_cost.study.search", lambda *_: pytest.fail("searched again"))
    monkeypatch.setattr("benchmarks.search_cost.study.naive_trial", lambda *_: pytest.fail("timed again"))
    assert a_study(study.cache).measure(naive=3) == found
    assert a_study(study.cache, ratio=0.5).name != study.name


def test_a_killed_run_goes_on_and_times_what_is_left(tmp_path):
    study = a_study(tmp_path, trials=6)
    search(study.model, TEXTS, replace(study.config, trials=2), study.run)
    assert study.measure(naive=1)["stretches"][0]["trials"] == 6
    # As if the second of two stretches had been killed after a trial.
    study = a_study(tmp_path, trials=7)
    kept = {"stretches": [{"trials": 3, "seconds": {}}], "naive": []}
    search(study.model, TEXTS, replace(study.config, trials=4), study.run)
    (study.folder / "measured.json").write_text(json.dumps(kept))
    found = study.measure(naive=2)
    assert [stretch["trials"] for stretch in found["stretches"]] == [3, 3]
    assert [trial["trial"] // 3 for trial in found["naive"]] == [0, 1]


def test_a_killed_stretch_counts_the_trials_that_were_timed(measured):
    times = {"statistics": 9.0, "dense": 1.0, "baselines": 4.0, "finalists": 2.0}
    first = {"trials": 5, "seconds": times | {"trials": 10.0}}
    last = {"trials": 4, "seconds": times | {"statistics": 0.5, "baselines": 0.0, "finalists": 6.0, "trials": 8.0}}
    expected = {"statistics": 9.0, "baselines": 4.0, "dense": 1.0, "trials": 20.0, "finalists": 6.0}
    assert search_seconds([first, last], trials=10) == pytest.approx(expected)


def test_the_typical_candidate_is_nearest_to_the_mean_work():
    def candidate(count, metric):
        return Candidate(Subset(10, "all", count, "random-0"), metric, kv_groups=1)

    everyone = {
        3: candidate(8, MetricPoint(share=1, norm_power=0)),
        4: candidate(8, MetricPoint(share=1)),
        5: candidate(8, MetricPoint()),
        6: candidate(2, MetricPoint()),
    }
    assert [work(each) for each in everyone.values()] == [0, 80, 240, 60]
    assert typical(everyone, everyone) == 4
    assert typical({5: everyone[5], 6: everyone[6]}, everyone) == 6
    with pytest.raises(GateError, match="no trial of this stretch"):
        typical({}, everyone)


def test_unequal_work_is_stopped():
    check_same(7, [1.0, 2.0], [1.0, 2.001])
    with pytest.raises(GateError, match=r"trial 7: the naive loop.s loss is 1\.6"):
        check_same(7, [1.0, 2.2], [1.0, 2.0])


def test_the_rows_hold_what_was_measured(measured):
    study, found = measured
    rows = cost_rows(study, found, SETTING, "tiny")
    values = {(row.provider, row.quantity): row.median for row in rows}
    assert len(values) == len(rows)
    naive = [sum(each["seconds"][stage] for stage in STAGES) for each in found["naive"]]
    ours = values["pruneengine", "search"]
    assert values["naive loop", TIMES] == pytest.approx(sum(naive) / 3 * 9 / ours)
    prepared = ours + values["pruneengine", "search: statistics"] + values["pruneengine", "search: baselines"]
    assert values["pruneengine", "search with its preparation"] == pytest.approx(prepared)
    assert 0 < values["pruneengine", BESIDE] < 1
    assert ("naive loop, whole text", "trial, 200 tokens, evaluation x5") in values
    assert f"naive loop              {TIMES}" in table(rows)
    assert [line.split(":")[1] for line in verdicts(rows)] == [
        f" share beside the forward passes of pruneengine is {values['pruneengine', BESIDE]:.3g}, target at most 0.03",
        f" {TIMES} of naive loop is {values['naive loop', TIMES]:.3g}, target at least 30",
    ]


GOOD, BAD = (0.5,) * 8, (0.9, 0.8, 0.9, 0.7, 0.9, 0.8, 0.9, 0.7)
# Worse than GOOD on the first six blocks, and best of all by the last two.
LATE = (0.6, 0.7, 0.8, 0.9, 0.61, 0.71, -2.0, -2.0)


def test_a_bad_trial_is_stopped_and_the_winner_survives():
    found = replay([Recorded(0, GOOD), Recorded(1, BAD), Recorded(2, (0.4,) * 8)], stop=0.1)
    # Of n differences of one sign the one-sided p-value is 2^-n: below 0.1 with the fourth block, which ends a piece.
    assert found.stopped == (1,)
    assert (found.blocks, found.saved) == (24, 4)
    assert (found.winner, found.winner_stopping, found.survives, found.change) == (2, 2, True, 0.0)
    assert replay([Recorded(0, GOOD), Recorded(1, BAD)], stop=0.1, piece=3).saved == 2


def test_a_winner_that_is_stopped_costs_what_the_next_best_has_more():
    trials = [Recorded(0, (0.5,) * 8), Recorded(1, LATE), Recorded(2, (0.49,) * 8)]
    found = replay(trials, stop=0.1)
    value = sum(LATE) / 8
    assert (found.winner, found.winner_stopping, found.survives) == (1, 2, False)
    assert found.change == pytest.approx((0.49 - value) / abs(value))
    # What the search knew beforehand is never stopped, and costs no block.
    free = replay([trials[0], replace(trials[1], free=True), trials[2]], stop=0.1)
    assert free.survives
    assert free.blocks == 16


def test_the_first_order_of_a_replay_is_the_recorded_one():
    trials = [Recorded(n, tuple(v + n / 100 for v in GOOD)) for n in range(6)]
    rows = replay_rows(trials, 3, SETTING, "by hand")
    assert {row.provider for row in rows} == {"stop 0.05", "stop 0.1", "stop 0.2"}
    assert [row.median for row in rows if row.quantity == CHANGE] == [0.0] * 3
    assert "met: winner's loss change of stop 0.1 is 0, target at most 0.01" in verdicts(rows)


def test_a_search_without_stopping_is_replayed(measured):
    study, _ = measured
    options = argparse.Namespace(replay_study=None, replay_storage=None, replay_trials=6)
    trials = replay_trials(study, options)
    assert 2 <= len(trials) <= 6
    assert all(len(trial.losses) == len(TEXTS.search) for trial in trials)
    assert replay_trials(study, options) == trials


def test_a_study_with_stopped_trials_is_refused():
    study = optuna.create_study(study_name="short")
    for losses in (GOOD, BAD[:3]):
        trial = study.ask()
        for block, loss in enumerate(losses):
            trial.report(loss, block)
        complete = len(losses) == len(GOOD)
        study.tell(trial, 0.5 if complete else None, state=optuna.trial.TrialState(1 if complete else 2))
    with pytest.raises(ValueError, match="trial 1 of study 'short' was stopped after 3 blocks"):
        recorded(study)
