"""What the finals of a search hold, and what they leave of the model that they prune in place."""

import gc
import weakref

import pytest
import torch

pytest.importorskip("optuna")
pytest.importorskip("scipy")

import pruneengine as pe
from pruneengine.model.masking import keep_weights, restored_weights
from pruneengine.search.dsa import finals
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.search.dsa.objective import SparseObjective
from pruneengine.search.run import SearchRun
from pruneengine.sparse.matrices import find_matrices
from pruneengine.sparse.pruners import pruner as pruners
from tests.helpers.tiny import logits, tiny_model, tiny_tokens
from tests.search.dsa.test_search import OPTIONS, texts


def run(model, where=None, **changes):
    return pe.search(model, texts(), DsaConfig(**(OPTIONS | {"trials": 6} | changes)), where)


def bits(model):
    return {name: tensor.detach().clone().view(torch.uint8) for name, tensor in model.state_dict().items()}


def is_as_before(model, before, answers):
    same = all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())
    hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks or module._forward_hooks]
    stood_in = [name for name, module in model.named_modules() if "forward" in vars(module)]
    return same and not hooked and not stood_in and torch.equal(logits(model, tiny_tokens()), answers)


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_search_gives_the_model_back_bit_for_bit(pruner, dtype):
    model = tiny_model(dtype=dtype)
    before, answers = bits(model), logits(model, tiny_tokens())
    found = run(model, pruner=pruner, trials=2)
    assert len(found.finalists) >= 3
    assert is_as_before(model, before, answers)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("pruner", ["Wanda", "SparseGPT"])
def test_a_prune_that_is_stopped_half_way_gives_the_model_back(monkeypatch, error, pruner):
    kind = getattr(pruners, pruner)
    prune, changed = kind.prune, []
    model = tiny_model("qwen2-biases")
    before, answers = bits(model), logits(model, tiny_tokens())

    def stopped(self, *arguments):
        prune(self, *arguments)
        changed.append(any(not torch.equal(tensor, before[name]) for name, tensor in bits(model).items()))
        if len(changed) == 3:
            raise error("half-way")

    monkeypatch.setattr(kind, "prune", stopped)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            run(model, pruner=pruner.lower())
    else:
        # An allocation that cannot be pruned is left out, and the next is pruned from the dense model.
        found = run(model, pruner=pruner.lower())
        assert found.warnings[0].endswith("half-way")
        monkeypatch.setattr(kind, "prune", prune)
        (calibration,) = texts().pool.values()
        again = tiny_model("qwen2-biases")
        pe.sparsify(again, calibration, found.config.sparse_config, plan=found.plan)
        loss = pe.perplexity(again, texts().held_out).nll - found.dense["held out"]
        assert loss == pytest.approx(found.winner.held_out, abs=1e-9)
    assert changed[2]
    assert is_as_before(model, before, answers)


def test_what_trials_need_is_gone_before_the_first_prune(monkeypatch):
    made, init, sparsify, alive = [], SparseObjective.__init__, finals.sparsify, []

    def remembered(self, model, structure, matrices, codes, *arguments, **options):
        made.extend([weakref.ref(self), *(weakref.ref(of) for of in codes.values())])
        init(self, model, structure, matrices, codes, *arguments, **options)

    def looked(*arguments, **options):
        gc.collect()
        alive.append([of() for of in made if of() is not None])
        return sparsify(*arguments, **options)

    monkeypatch.setattr(SparseObjective, "__init__", remembered)
    monkeypatch.setattr(finals, "sparsify", looked)
    found = run(tiny_model(), correlate=8, trials=12)
    assert len(made) == 1 + 3 * 7
    assert len(alive) >= 8
    assert not any(alive)
    assert found.segments == 18
    assert {"trials: forward", "trials: score"} <= found.seconds.keys()


def test_weights_are_kept_once_and_only_where_something_is_pruned(monkeypatch, tmp_path):
    calls = []

    def kept(model, paths):
        calls.append(list(paths))
        return keep_weights(model, paths)

    monkeypatch.setattr(finals, "keep_weights", kept)
    model, where = tiny_model(), SearchRun("a", f"journal:{tmp_path / 'a.journal'}")
    first = run(model, where, ignore="q_proj")
    linears = find_matrices(model, pe.find_groups(model), ("q_proj",))
    assert calls == [[matrix.name for matrix in linears]]
    monkeypatch.setattr(finals, "sparsify", lambda *_, **__: pytest.fail("pruned again"))
    assert run(model, where, ignore="q_proj").finalists == first.finalists
    assert len(calls) == 1


def test_kept_weights_are_no_views_of_the_model():
    model = tiny_model()
    before = bits(model)
    kept = keep_weights(model, [m.name for m in find_matrices(model, pe.find_groups(model))])
    with restored_weights(model, kept):
        pe.sparsify(model, config=pe.SparseConfig("magnitude", 0.5))
        assert not any(torch.equal(bits(model)[f"{name}.weight"], before[f"{name}.weight"]) for name in kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())
    assert {weight.device.type for weight in kept.values()} == {"cpu"}
