"""Early stopping: one test for both searches, which decides as Optuna's Wilcoxon pruner does."""

import random
import warnings

import pytest

optuna = pytest.importorskip("optuna")
pytest.importorskip("scipy")

from pruneengine.search.early_stop import is_worse  # noqa: E402
from pruneengine.search.optuna_pruner import pruner  # noqa: E402
from pruneengine.search.study import open_study  # noqa: E402


def test_what_is_worse_segment_by_segment_is_stopped():
    best = tuple(range(16))
    assert is_worse(tuple(loss + 0.1 for loss in best[:8]), best, 0.1)
    assert not is_worse(tuple(loss + 0.1 * (-1) ** loss for loss in best[:8]), best, 0.1)
    # Worse in most segments, and better on average all the same.
    assert not is_worse((0.1, 1.1, 2.1, 3.1, 4.1, 5.1, 6.1, 0), best, 0.9)
    assert not is_worse((9.0,), best, 0.1)
    assert not is_worse((9.0, 9.0), (), 0.1)
    assert not is_worse((float("inf"), 9.0), best, 0.9)


def test_the_pruner_stops_what_is_worse_block_by_block():
    study = open_study("s", "memory", {})
    study.pruner = pruner(0.1)
    best = study.ask()
    for block in range(8):
        best.report(float(block), block)
    study.tell(best, 3.5)
    worse, equal = study.ask(), study.ask()
    stopped = []
    for block in range(8):
        worse.report(block + 0.1, block)
        stopped.append(worse.should_prune())
        equal.report(block + (0.1 if block % 2 else -0.1), block)
        assert not equal.should_prune()
    assert True in stopped
    assert not stopped[0]
    study.pruner = pruner(None)
    assert not worse.should_prune()


@pytest.mark.parametrize("p", [0.02, 0.1, 0.4])
def test_a_study_stops_where_optunas_pruner_would(p):
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    draw, decisions = random.Random(0), []
    theirs, ours = optuna.pruners.WilcoxonPruner(p_threshold=p), pruner(p)
    for _ in range(40):
        study = open_study("s", "memory", {})
        levels = [draw.random() for _ in range(16)]
        for shift in [draw.gauss(0, 0.2) for _ in range(4)]:
            trial = study.ask()
            losses = [level + shift + draw.gauss(0, 0.2) for level in levels]
            for block, loss in enumerate(losses):
                trial.report(loss, block)
                frozen = study.get_trials()[trial.number]
                decisions.append(ours.prune(study, frozen))
                assert decisions[-1] == theirs.prune(study, frozen)
            study.tell(trial, sum(losses) / len(losses))
    assert 50 < sum(decisions) < len(decisions) - 50
