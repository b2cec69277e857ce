"""A pruned model whose loss is not finite is saved with a warning: what was computed must not be lost."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruneengine import PruneConfig, SparseConfig
from pruneengine.checkpoint.reload_proof import ReloadError, prove_reload
from pruneengine.data.windows import Samples
from pruneengine.evaluation.measures import Measurer
from pruneengine.evaluation.perplexity import perplexity
from pruneengine.jobs import prune, search, search_dsa
from pruneengine.jobs import prune_sparse as sparsify
from tests.helpers.pages import read
from tests.helpers.tiny import logits, tiny_model, tiny_tokens


def ruin(model):
    """Weights that are finite, and logits that are not."""
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    return model


def ruining(change):
    """What changes a model, and ruins it on the way."""

    def changed(model, *arguments, **options):
        found = change(model, *arguments, **options)
        ruin(model)
        return found

    return changed


def evaluated(folder, kind, **more):
    text = str(folder / "text.txt")
    return kind(
        source=str(folder / "model"), eval_text=text, eval_seqlen=32, eval_windows=4, **({"proof": False} | more)
    )


def checked(out, job):
    """The checkpoint, its report and its page say what happened."""
    assert job.pruned.perplexity is None
    assert any(w.startswith("the changed model has no perplexity: window 0 of 4") for w in job.warnings)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert not bool(logits(model, tiny_tokens(1)).isfinite().any())
    report = json.loads((out / "report.json").read_text())
    assert report["perplexity"] == {"dense": job.dense.perplexity.perplexity, "pruned": None}
    assert any("no perplexity" in warning for warning in report["warnings"])
    assert "the changed model has no perplexity" in read((out / "report.html").read_text()).text


@pytest.mark.parametrize("proof", [True, False])
def test_a_sparse_prune(folder, tmp_path, monkeypatch, proof):
    monkeypatch.setattr(sparsify, "carry_out", ruining(sparsify.carry_out))
    options = evaluated(folder, prune.JobOptions, out=tmp_path / "out", proof=proof)
    job = sparsify.run(SparseConfig("magnitude", 0.5, nsamples=4, seqlen=16), options)
    checked(tmp_path / "out", job)
    assert (job.saved.proof is not None) == proof


def test_a_structured_prune(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prune, "carry_out", ruining(prune.carry_out))
    options = evaluated(folder, prune.JobOptions, out=tmp_path / "out")
    checked(tmp_path / "out", prune.run(PruneConfig("magnitude_l2", 0.2, nsamples=4, seqlen=16), options))


def test_a_search_of_functions(folder, tmp_path, monkeypatch):
    from pruneengine.search.dsa.config import DsaConfig

    pytest.importorskip("optuna")
    monkeypatch.setattr(search_dsa, "sparsify", ruining(search_dsa.sparsify))
    config = DsaConfig(
        sparsity=0.5, trials=2, population=2, windows=4, held_out=0.25, seqlen=24, nsamples=4, calibration_seqlen=16,
        finalists=1, correlate=0,
    )  # fmt: skip
    job = search_dsa.run(config, evaluated(folder, search.SearchOptions, out=tmp_path / "out"))
    checked(tmp_path / "out", job)


def test_a_search_of_plans(folder, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "compact", ruining(search.compact))
    config = search.AdaPrunerConfig(
        ratio=0.3, trials=2, startup=2, pool=8, counts=(4,), lengths=(16,), seqlen=20, windows=4, held_out=2,
        round_to=1, compensate=("none",),
    )  # fmt: skip
    job = search.run(config, evaluated(folder, search.SearchOptions, out=tmp_path / "out"))
    checked(tmp_path / "out", job)


def test_the_dense_model_must_have_a_loss():
    text = Samples(tiny_tokens(2, 16), ("text",) * 2)
    with pytest.raises(FloatingPointError, match="window 0 of 2"):
        perplexity(ruin(tiny_model()), text)
    measures, warnings = Measurer(text).measure_pruned(tiny_model())
    assert measures.perplexity.tokens == 30
    assert warnings == ()


def test_a_proof_tells_what_overflows_from_what_does_not(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "sound")
    with pytest.raises(ReloadError, match="largest difference inf"):
        prove_reload(tmp_path / "sound", ruin(model))
