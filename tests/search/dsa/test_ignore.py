"""A search for an allocation function that leaves linears dense."""

import pytest
import torch

pytest.importorskip("optuna")
pytest.importorskip("scipy")

import pruneengine as pe
from pruneengine.search.dsa import search as dsa
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.run import SearchRun
from pruneengine.search.study import open_study
from tests.helpers.tiny import tiny_model
from tests.search.dsa.test_search import config, search, texts

# Those of tiny_model whose 60 input dimensions 8 does not divide.
UNEVEN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


@pytest.fixture(scope="module")
def found():
    return search(sparsity=None, pattern="4:8", ignore=UNEVEN, trials=6)


def test_a_pattern_that_does_not_fit_all_linears_is_searched_on_the_others(found):
    kept = {f"model.layers.{layer}.{path}" for layer in range(3) for path in ("self_attn.o_proj", "mlp.down_proj")}
    assert all(set(judged.plan.removed) == kept for judged in found.finalists)
    assert found.plan.reached == 0.5
    assert sum(found.allocations[found.winner.entrant.name]) / 3 == pytest.approx(0.5)
    assert found.metadata["ignore"] == list(UNEVEN)


def test_what_is_ignored_stays_dense_by_the_plan_found(found):
    model, dense = tiny_model(), tiny_model().state_dict()
    (calibration,) = texts().pool.values()
    pe.sparsify(model, calibration, found.config.sparse_config, plan=found.plan)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, dense[name])}
    assert changed == {f"{name}.weight" for name in found.plan.removed}


def test_trials_do_not_mask_what_is_ignored(monkeypatch):
    masked = []
    quantile_masks = dsa.quantile_masks

    def codes(model, matrices, *arguments):
        masked.extend(matrix.name for matrix in matrices)
        return quantile_masks(model, matrices, *arguments)

    monkeypatch.setattr(dsa, "quantile_masks", codes)
    result = search(ignore=r"re:layers\.1\.", trials=3)
    assert {name.split(".")[2] for name in masked} == {"0", "2"}
    assert {trial.levels[1] for trial in result.trials if trial.levels} == {0}
    assert all(len(shares) == 3 and shares[1] == 0 for shares in result.allocations.values())
    assert result.plan.reached == pytest.approx(0.5, abs=1e-4)


def test_an_ignore_that_matches_nothing_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(dsa, "calibrate", lambda *_, **__: pytest.fail("calibrated"))
    with pytest.raises(ValueError, match="ignore 'middle_proj' matches none of the linears"):
        search(ignore="middle_proj")


def test_a_study_from_before_there_was_an_ignore_goes_on(tmp_path):
    run = SearchRun("old", f"journal:{tmp_path / 'old.journal'}")
    model = tiny_model()
    identity = {"method": "dsa"} | run.identity(model, texts(), "calibration") | config().identity
    assert "ignore" not in identity
    open_study(run.study, run.storage, identity)
    assert search(run, trials=2).counts["drawn"] == 2
    with pytest.raises(ValueError, match=r"its ignore is None, this search's is \['q_proj'\]"):
        search(run, trials=2, ignore="q_proj")


def test_an_ignore_is_part_of_a_study(tmp_path):
    run = SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    search(run, trials=2, ignore=("q_proj", "k_proj"))
    assert search(run, trials=2, ignore="q_proj, k_proj").counts["drawn"] == 2
    with pytest.raises(ValueError, match=r"its ignore is \['q_proj', 'k_proj'\], this search's is None"):
        search(run, trials=2)


def test_a_recipe_holds_it_as_a_list():
    made = config(ignore="q_proj,re:a{1,2}")
    assert made.ignore == ("q_proj", "re:a{1,2}") == made.sparse_config.ignore
    assert made.to_dict()["ignore"] == ["q_proj", "re:a{1,2}"]
    assert DsaConfig.from_dict(made.to_dict()) == made
