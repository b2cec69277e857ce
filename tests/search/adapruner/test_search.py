"""The whole search on a tiny model: never worse than the fixed metrics, resumable, and shared by several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pruneengine as pe
from pruneengine.data.samples import Samples

pytest.importorskip("optuna")

from pruneengine import AdaPrunerConfig, SearchRun, SearchTexts, search
from pruneengine.search.study import reopen_study
from tests.helpers import forked
from tests.helpers.tiny import tiny_model, tiny_tokens

CONFIG = AdaPrunerConfig(
    ratio=0.4, trials=14, startup=8, pool=12, counts=(4, 8), lengths=(16,), seqlen=20, windows=8, held_out=6,
    round_to=1, compensate=("none",),
)  # fmt: skip


def samples(count, length, seed):
    return Samples(tiny_tokens(count, length, seed), ("text",) * count)


TEXTS = SearchTexts({16: samples(12, 16, 3)}, samples(8, 20, 4), samples(6, 20, 5))


def run_in(folder, name="study", **changes):
    return SearchRun(name, f"journal:{folder}/study.journal", folder, **changes)


def each_is(each, name):
    """Whether a trial or a baseline is the finalist of a name."""
    return name == (f"trial {each.number}" if hasattr(each, "number") else each.name)


@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_winner_is_no_worse_than_any_fixed_metric(tmp_path, shape, sampler):
    model = tiny_model()
    config = replace(CONFIG, shape=shape, sampler=sampler)
    found = search(model, TEXTS, config, run_in(tmp_path))
    legal = [baseline for baseline in found.baselines if baseline.losses]
    assert len(legal) >= 6
    assert found.winner.value <= min(baseline.value for baseline in legal)
    assert found.plan.shape in (shape, "uniform")
    assert found.plan.reached == pytest.approx(0.4, abs=0.03)
    assert len(found.trials) == config.trials
    with pe.mask(model, found.plan):
        loss = pe.perplexity(model, TEXTS.held_out).nll
    assert loss - found.dense["held out"] == pytest.approx(found.winner.held_out, abs=1e-5)
    heads = sum(len(kept) for name, kept in found.plan.keep.items() if name.endswith("heads"))
    same = [each.kv_bytes for each in (*found.trials, *found.baselines) if each_is(each, found.winner.name)]
    # Keys and values of 12 float32 numbers a head.
    assert same == [heads * 2 * 12 * 4]
    values = json.loads(json.dumps(found.to_dict()))
    assert values["best"]["name"] == found.winner.name
    assert {trial["state"] for trial in values["trials"]} <= {"complete", "pruned"}


def test_finished_work_is_not_done_again(tmp_path, monkeypatch):
    model = tiny_model()
    first = search(model, TEXTS, CONFIG, run_in(tmp_path))
    forward = []
    monkeypatch.setattr(type(model.model.layers[0]), "forward", counting(type(model.model.layers[0]).forward, forward))
    again = search(model, TEXTS, CONFIG, run_in(tmp_path))
    assert again.to_dict() | {"seconds": 0} == first.to_dict() | {"seconds": 0}
    # Only the dense model on both texts, and the finalists on the held-out one.
    pieces = {"dense": 4 + 3, "finalists": 3 * len(first.finalists)}
    assert len(forward) <= sum(pieces.values()) * len(model.model.layers)
    longer = search(model, TEXTS, replace(CONFIG, trials=16), run_in(tmp_path))
    assert [t.params for t in longer.trials[:14]] == [t.params for t in first.trials]
    assert len(longer.trials) == 16


def counting(method, calls):
    def counted(self, *args, **kwargs):
        calls.append(self)
        return method(self, *args, **kwargs)

    return counted


def test_a_mask_that_was_seen_is_answered_from_cache(tmp_path):
    found = search(tiny_model(), TEXTS, CONFIG, run_in(tmp_path))
    repeats = [trial for trial in found.trials if trial.origin == "repeat"]
    # The first trials of a uniform search are the fixed metrics, which are known by then.
    assert len(repeats) >= 7
    values = {round(baseline.value, 9) for baseline in found.baselines}
    assert all(round(trial.value, 9) in values for trial in found.trials[:7])
    assert all("evaluate" not in trial.seconds for trial in repeats)


def test_candidates_that_share_a_forward_pass_get_the_same_losses(tmp_path):
    alone = search(tiny_model(), TEXTS, replace(CONFIG, sampler="random", stop=None), run_in(tmp_path, "alone"))
    config = replace(CONFIG, sampler="random", stop=None, together=3)
    together = search(tiny_model(), TEXTS, config, run_in(tmp_path, "together"))
    assert [t.params for t in together.trials] == [t.params for t in alone.trials]
    for one, other in zip(alone.trials, together.trials, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-5)


def test_stopped_trials_are_worse_than_the_best_of_their_time(tmp_path):
    config = replace(CONFIG, trials=30, shape="per-layer", sampler="random")
    found = search(tiny_model(), TEXTS, config, run_in(tmp_path))
    stopped = [trial for trial in found.trials if trial.state == "pruned" and trial.blocks]
    assert stopped
    for trial in stopped:
        done = [t for t in found.trials[: trial.number] if t.state == "complete"]
        best = min(done, key=lambda t: t.value)
        assert sum(trial.blocks) > sum(best.blocks[: len(trial.blocks)])
        assert trial.value is None


WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from dataclasses import replace
from tests.search.adapruner.test_search import CONFIG, TEXTS, run_in, search, tiny_model
search(tiny_model(), TEXTS, replace(CONFIG, trials=40), run_in(Path(sys.argv[1])))
"""


def test_a_killed_search_goes_on_and_ends_where_an_unbroken_one_ends(tmp_path):
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], cwd=root)
    journal = tmp_path / "study.journal"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_text().count('"state"') > 25:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [t for t in reopen_study("study", f"journal:{journal}").trials if t.state.is_finished()]
    assert 5 < len(done) < 40
    config = replace(CONFIG, trials=40)
    resumed = search(tiny_model(), TEXTS, config, run_in(tmp_path))
    kept = {trial.number: trial.params for trial in resumed.trials}
    assert all(kept[trial.number] == trial.params for trial in done)
    assert sum(trial.state == "fail" for trial in resumed.trials) <= 1
    unbroken = search(tiny_model(), TEXTS, config, run_in(tmp_path, "unbroken"))
    drawn = [trial.params for trial in resumed.trials if trial.state != "fail"]
    assert drawn == [trial.params for trial in unbroken.trials]
    assert resumed.plan == unbroken.plan
    assert resumed.winner.value == unbroken.winner.value


def run_forty_trials(folder):
    torch.set_num_threads(1)
    search(tiny_model(), TEXTS, replace(CONFIG, trials=40), run_in(folder))


def test_two_workers_share_a_study(tmp_path):
    other = forked.parent().Process(target=run_forty_trials, args=(tmp_path,))
    other.start()
    found = search(tiny_model(), TEXTS, replace(CONFIG, trials=40), run_in(tmp_path, workers=2))
    other.join(120)
    assert other.exitcode == 0
    trials = reopen_study("study", f"journal:{tmp_path}/study.journal").trials
    assert 40 <= sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials) <= 43
    assert [trial.number for trial in trials] == list(range(len(trials)))
    # Not than every trial: the winner is judged on the held-out blocks too, and the other process may still have run.
    assert found.winner.value <= min(baseline.value for baseline in found.baselines if baseline.losses)


def test_a_worker_that_dies_costs_its_trial_only(tmp_path, monkeypatch):
    from pruneengine.search import workers

    monkeypatch.setattr(workers, "_work", _die)
    said = []
    found = search(tiny_model(), TEXTS, CONFIG, run_in(tmp_path, workers=2), say=said.append)
    assert len([t for t in found.trials if t.state != "fail"]) == CONFIG.trials
    assert any("exit status" in line for line in said)


def _die(*_):
    os._exit(3)


def test_a_time_limit_ends_the_search_with_what_there_is(tmp_path):
    found = search(tiny_model(), TEXTS, CONFIG, run_in(tmp_path, time_limit=1e-6))
    assert not found.trials
    assert found.winner.name in {baseline.name for baseline in found.baselines}
    assert found.candidate is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials must be a whole number from 1, got 0"),
        ({"pool": 8, "counts": (16,)}, "a subset of 16 samples is larger than the pool of 8"),
        ({"ratio": 1.2}, r"ratio must lie in \(0, 1\), got 1.2"),
        ({"kinds": ("layers",)}, "heads, mlp or both"),
        ({"selectors": ("best",)}, "unknown selector 'best'"),
        ({"compensate": ("magic",)}, "unknown compensation 'magic'"),
        ({"sampler": "grid"}, "unknown sampler 'grid'; choose from tpe, random"),
        ({"shape": "round"}, "unknown shape 'round'"),
        ({"stop": 0.0}, "p-value"),
        ({"layers": (0, 2)}, "shape"),
        ({"lengths": "16,x"}, "lengths must be whole numbers, comma separated, got '16,x'"),
        ({"pool": 1, "counts": (1,), "compensate": ("least-squares",)}, "needs a pool of at least 2 samples, got 1"),
        ({"lengths": ()}, "lengths must name at least one to draw from, got none"),
        ({"selectors": []}, "selectors must name at least one"),
        ({"compensate": []}, "compensate must name at least one"),
        ({"lengths": (1,)}, "lengths must be a whole number from 2"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_a_target_without_a_legal_plan_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="out of reach"):
        search(tiny_model(), TEXTS, replace(CONFIG, ratio=0.95), run_in(tmp_path))
    assert not (tmp_path / "study.journal").exists()


def test_the_study_of_another_model_or_space_is_refused(tmp_path):
    search(tiny_model(), TEXTS, replace(CONFIG, trials=1), run_in(tmp_path))
    with pytest.raises(ValueError, match="its model is"):
        search(tiny_model(seed=1), TEXTS, CONFIG, run_in(tmp_path))
    with pytest.raises(ValueError, match="its counts is"):
        search(tiny_model(), TEXTS, replace(CONFIG, counts=(4,)), run_in(tmp_path))
    other = replace(TEXTS, search=samples(8, 20, 9))
    with pytest.raises(ValueError, match="its search text is"):
        search(tiny_model(), other, CONFIG, run_in(tmp_path))


def test_a_config_survives_its_recipe():
    config = replace(CONFIG, shape="per-layer", layers="1:3")
    assert AdaPrunerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"unknown option 'trial'; known: .*trials"):
        AdaPrunerConfig.from_dict({"trial": 3})


def test_counts_follow_the_pool():
    assert AdaPrunerConfig(pool=128).counts == (16, 32, 64)
    assert AdaPrunerConfig(pool=6).counts == (1, 3)
    with pytest.raises(ValueError, match="pool must be a whole number from 2, got 1"):
        AdaPrunerConfig(pool=1)


def test_starts_that_were_lost_are_given_again():
    import optuna

    from pruneengine.search.adapruner.search import _enqueue_starts

    study, starts = optuna.create_study(), [{"x": 0.1}, {"x": 0.2}, {"x": 0.3}]
    _enqueue_starts(study, starts)
    done, lost = study.ask(), study.ask()
    for trial in (done, lost):
        trial.suggest_float("x", 0, 1)
    study.tell(done, 1.0)
    study.tell(lost, state=optuna.trial.TrialState.FAIL)
    for _ in range(2):
        _enqueue_starts(study, starts)
    waiting = [t.system_attrs["fixed_params"] for t in study.trials if t.state.name == "WAITING"]
    assert waiting == [{"x": 0.3}, {"x": 0.2}]


def test_the_sources_of_a_mix_are_searched(tmp_path):
    pool = Samples(tiny_tokens(12, 16, 3), ("one",) * 8 + ("two",) * 4)
    found = search(tiny_model(), replace(TEXTS, pool={16: pool}), replace(CONFIG, trials=20), run_in(tmp_path))
    assert {trial.params.get("source") for trial in found.trials} >= {"all", "one", "two"}


def test_compensation_is_kept_where_it_helps(tmp_path):
    model = tiny_model()
    config = replace(CONFIG, compensate=("none", "least-squares"))
    found = search(model, TEXTS, config, run_in(tmp_path))
    plain = search(model, TEXTS, CONFIG, run_in(tmp_path))
    assert found.winner.held_out == plain.winner.held_out == plain.winner.compensated
    assert found.winner.compensated <= found.winner.held_out
    assert (found.winner.compensation == "least-squares") == bool(found.corrections)
    with pe.mask(model, found.plan, corrections=found.corrections):
        loss = pe.perplexity(model, TEXTS.held_out).nll
    assert loss - found.dense["held out"] == pytest.approx(found.winner.compensated, abs=1e-5)


def test_compensation_is_judged_in_the_precision_of_the_objective(tmp_path, monkeypatch):
    from pruneengine.search.adapruner import finals

    used = []

    def perplexity(*arguments, dtype=None):
        used.append(dtype)
        return pe.perplexity(*arguments, dtype=dtype)

    monkeypatch.setattr(finals, "perplexity", perplexity)
    config = replace(CONFIG, compensate=("none", "least-squares"), trials=1)
    found = search(tiny_model(), TEXTS, config, run_in(tmp_path, dtype=torch.bfloat16))
    assert used == [torch.bfloat16]
    assert found.to_dict()["best"]["reached"] == found.plan.reached


def test_a_winner_with_means_gets_their_bias(tmp_path):
    config = replace(CONFIG, compensate=("none", "bias"), sampler="random", trials=20)
    found = search(tiny_model(), TEXTS, config, run_in(tmp_path))
    fills = {trial.params.get("fill") for trial in found.trials if trial.params}
    assert fills == {"zero", "mean"}
    if found.candidate is not None and found.candidate.fill == "mean":
        assert found.winner.compensation == "bias"
    assert torch.isfinite(torch.tensor(found.winner.held_out))


@pytest.mark.parametrize("part", [{"layers": "1:3"}, {"kinds": "mlp"}])
def test_a_part_of_the_model_has_its_baselines_and_its_means(tmp_path, part):
    choices = {"compensate": ("none", "bias"), "shape": "per-layer", "ratio": 0.3, "sampler": "random"}
    found = search(tiny_model(), TEXTS, replace(CONFIG, **choices | part), run_in(tmp_path))
    # Three layers have no middle that "protected" could prune.
    assert {b.method for b in found.baselines if b.losses} == set(CONFIG.baselines)
    assert not [trial.illegal for trial in found.trials if "statistics" in (trial.illegal or "")]
    assert {trial.params["fill"] for trial in found.trials if trial.blocks} == {"zero", "mean"}
    for name, kept in found.plan.keep.items():
        if ("layers" in part and name.startswith("layers.0.")) or ("structure" in part and name.endswith(".heads")):
            assert len(kept) == found.plan.units[name]


def test_an_interrupted_trial_is_evaluated_again(tmp_path, monkeypatch):
    from pruneengine.search.adapruner.objective import Objective

    config = replace(CONFIG, sampler="random", stop=None, trials=4, shape="per-layer")
    evaluate, calls = Objective.evaluate, []

    def interrupted(self, candidates, stop=None):
        if stop is None:
            return evaluate(self, candidates)
        calls.append(candidates)

        def break_off(candidate, block, loss):
            if len(calls) == 3 and block == 2:
                raise KeyboardInterrupt
            return stop(candidate, block, loss)

        return evaluate(self, candidates, break_off)

    monkeypatch.setattr(Objective, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(tiny_model(), TEXTS, config, run_in(tmp_path))
    resumed = search(tiny_model(), TEXTS, config, run_in(tmp_path))
    assert [trial.state for trial in resumed.trials].count("fail") == 1
    again = [trial for trial in resumed.trials if trial.state != "fail"]
    assert [trial.state for trial in again] == ["complete"] * 4
