"""The loop of trials that both searches share: its ends, interruptions and trials that others failed."""

import math
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

optuna = pytest.importorskip("optuna")

from pruneengine.search.loop import TrialLoop  # noqa: E402
from pruneengine.search.study import counted, open_study, running  # noqa: E402


@dataclass
class Loop(TrialLoop):
    """Trials of one number each; ``fault`` is called with every trial before it is told."""

    size: int = 1
    end: int = 100
    fault: object = lambda _: None
    counts: list = field(default_factory=list)

    @property
    def together(self):
        return self.size

    @property
    def over(self):
        return counted(self.study) >= self.end

    def prepare(self):
        self.counts.clear()

    def run_trials(self, count):
        self.counts.append(count)
        for trial in [self.ask(optuna.samplers.RandomSampler(seed=0)) for _ in range(count)]:
            self.fault(trial)
            self.study.tell(trial, trial.suggest_float("x", 0, 1))


def loop(trials=7, **options):
    return Loop(open_study("s", "memory", {}), SimpleNamespace(trials=trials), **options)


def states(loop):
    return [trial.state.name for trial in loop.study.trials]


def test_trials_are_drawn_until_the_study_has_them():
    trials = loop(size=3)
    trials.run()
    assert trials.counts == [3, 3, 1]
    assert states(trials) == ["COMPLETE"] * 7
    trials.run()
    assert trials.counts == []


@pytest.mark.parametrize(
    ("options", "arguments", "drawn"),
    [
        ({"end": 4}, {}, 4),
        ({}, {"deadline": time.monotonic()}, 0),
        ({}, {"deadline": math.inf}, 7),
        ({}, {"go_on": lambda: False}, 0),
    ],
)
def test_a_loop_ends_early_at_a_plateau_a_deadline_or_when_it_is_told_to(options, arguments, drawn):
    trials = loop(**options)
    trials.run(**arguments)
    assert len(trials.study.trials) == drawn


def test_trials_that_were_drawn_are_failed_when_a_step_is_interrupted():
    def interrupt(trial):
        if trial.number == 4:
            raise KeyboardInterrupt

    trials = loop(size=3, fault=interrupt)
    with pytest.raises(KeyboardInterrupt):
        trials.run()
    assert states(trials) == ["COMPLETE"] * 4 + ["FAIL"] * 2
    assert not running(trials.study)


def test_a_trial_that_another_machine_failed_is_drawn_again_with_those_beside_it():
    def overtake(trial):
        if trial.number == 1:
            trials.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    trials = loop(size=3, fault=overtake)
    trials.run()
    assert states(trials) == ["COMPLETE", "FAIL", "FAIL"] + ["COMPLETE"] * 6


def test_a_copy_for_a_worker_holds_no_study():
    trials = loop()
    trials.run()
    copy = replace(trials, study=None)
    assert copy._asked == []
    assert copy.config is trials.config
