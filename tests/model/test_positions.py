"""Windows longer than the positions of a model: refused where each has a learned vector, warned of elsewhere."""

import pytest
import torch

import pruneengine as pe
from pruneengine.model.checks import check_positions
from pruneengine.recovery import RecoverConfig, recover
from tests.cli.test_prune import run
from tests.helpers.families import FAMILIES, family_model
from tests.helpers.tiny_tasks import byte_tokenizer

LEARNED = r"of 65 tokens: the model has 64 positions \(max_position_embeddings\), choose at most these"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_reads_the_windows_that_its_config_names(name):
    config = family_model(name).config
    assert check_positions(config, {"windows": 64}) == ()
    if name == "opt":
        with pytest.raises(ValueError, match=LEARNED):
            check_positions(config, {"short windows": 8, "windows": 65})
    elif name in ("bloom", "falcon-alibi"):
        assert check_positions(config, {"windows": 1_000_000}) == ()
    else:
        (warning,) = check_positions(config, {"windows": 1_000_000})
        assert warning.startswith("windows of 1000000 tokens: the model was trained on at most")
    assert check_positions(None, {"windows": 65}) == ()


def test_python_refuses_what_the_model_cannot_read():
    model, tokens = family_model("opt"), torch.randint(3, 97, (6, 65))
    for verb in (
        lambda: pe.calibrate(model, tokens, ("squares",)),
        lambda: pe.perplexity(model, tokens),
        lambda: pe.prune(model, tokens, pe.PruneConfig("wanda", 0.3)),
        lambda: recover(model, config=RecoverConfig(max_steps=1, val_rows=1), data=tokens),
    ):
        with pytest.raises(ValueError, match=LEARNED):
            verb()
    assert pe.perplexity(model, tokens[:, :64]).tokens == 6 * 63


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    path = tmp_path_factory.mktemp("opt")
    family_model("opt", vocab_size=256).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


VERBS = {
    "prune": (("prune", "--method", "wanda", "--ratio", 0.2, "--seqlen", 65), "calibration samples"),
    "prune, evaluation": (("prune", "--method", "magnitude_l1", "--ratio", 0.2, "--eval-seqlen", 65), "evaluation"),
    "sparse": (("prune", "--method", "wanda", "--sparsity", 0.5, "--seqlen", 65), "calibration samples"),
    "search": (("search", "--ratio", 0.2, "--seqlen", 65, "--lengths", 32), "search windows"),
    "search, lengths": (("search", "--ratio", 0.2, "--seqlen", 64, "--lengths", "32,65"), "calibration samples"),
    "dsa": (("search", "--method", "dsa", "--sparsity", 0.5, "--seqlen", 65, "--calibration-seqlen", 32), "search"),
    "eval": (("eval", "--text", "builtin-eval", "--seqlen", 65), "evaluation windows"),
    "recover": (
        ("recover", "--data", "builtin", "--cutoff", 65, "--eval-text", "none"),
        r"training windows \(cutoff\)",
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_before_the_model_is_loaded(opt, tmp_path, monkeypatch, verb):
    def fail(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("pruneengine.checkpoint.load._whole", fail)
    (name, *options), what = VERBS[verb]
    out = tmp_path / ("results.json" if name == "eval" else "out")
    done = run(name, opt, *options, "--out", out)
    assert done.returncode == 2, done.stderr
    with pytest.raises(ValueError, match=f"{what}.* {LEARNED}"):
        raise ValueError(done.stderr)
    assert not out.exists()
