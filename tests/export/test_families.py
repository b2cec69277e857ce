"""What inspect says of every family's checkpoints, held against what opens them and what each export does."""

import json

import pytest
import torch
import transformers

from pruneengine.checkpoint.load import load_model, load_skeleton
from pruneengine.checkpoint.write import save
from pruneengine.export import export
from pruneengine.export.model_shape import model_shape
from pruneengine.export.runtimes import runtimes
from pruneengine.model import find_groups
from pruneengine.structured.apply import compact
from tests.helpers.families import FAMILIES, family_model
from tests.helpers.tiny import logits
from tests.helpers.tiny_exports import byte_level_tokenizer
from tests.model.test_families import TOKENS, pruned

pytest.importorskip("gguf")
each_family = pytest.mark.parametrize("name", FAMILIES)
NOTHING_TO_PAD = "there is nothing to pad"


def opened(folder, **options):
    config = json.loads((folder / "config.json").read_text())
    opener = transformers.AutoModelForCausalLM
    if "text_config" in config:
        opener = transformers.AutoModelForImageTextToText
    model, info = opener.from_pretrained(folder, dtype="auto", output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def same_logits(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5 * float(expected.abs().max()))


@pytest.fixture
def proof_in_this_process(monkeypatch):
    """A fresh process for each of so many checkpoints takes minutes; the same files are opened here."""

    def prove(folder, model, _tokenizer):
        same_logits(logits(opened(folder), TOKENS), logits(model, TOKENS))
        return type("Proof", (), {"max_difference": 0.0})

    monkeypatch.setattr("pruneengine.export.pad.prove_reload", prove)


@each_family
@pytest.mark.parametrize("shape", ["uniform", "per-layer"])
@pytest.mark.shows("export")
def test_the_table_of_runtimes_is_what_happens(name, shape, tmp_path, proof_in_this_process, record_property):
    model = family_model(name)
    plan = pruned(model, shape=shape)
    foreseen = model_shape(model).after(plan)
    expected = logits(compact(model, plan), TOKENS)
    source = save(model, byte_level_tokenizer(), tmp_path / "ours", proof=False).path
    assert model_shape(load_skeleton(source)) == foreseen
    plainly, with_code, _vllm, *exports = runtimes(foreseen)
    assert plainly.opens is ("auto_map" not in json.loads((source / "config.json").read_text()))
    assert with_code.opens
    same_logits(logits(opened(source, trust_remote_code=not plainly.opens), TOKENS), expected)
    said = {way.how.rpartition(" ")[2]: way for way in exports}
    if foreseen.experts:
        record_property("shown", "none")
    for format in ("gguf", "deci", "pad"):
        if format not in said or not said[format].opens:
            reason = said[format].why if format in said else NOTHING_TO_PAD
            with pytest.raises(ValueError) as refused:
                export(source, tmp_path / format, format)
            assert str(refused.value).endswith(reason)
            continue
        made = export(source, tmp_path / format, format)
        assert made.written.verified
        record_property("shown", format)
        if format == "pad":
            same_logits(logits(opened(made.path), TOKENS), expected)


@pytest.mark.parametrize("name", ["opt", "falcon"])
def test_padding_gives_the_heads_back_that_the_config_cannot_leave_out(name, tmp_path):
    model = family_model(name)
    before = find_groups(model)
    compact(model, pruned(model, shape="uniform"))
    expected = logits(model, TOKENS)
    source = save(model, byte_level_tokenizer(), tmp_path / "ours", proof=False).path
    made = export(source, tmp_path / "pad", "pad")
    assert "opened by plain transformers in a fresh process" in made.written.verified[1]
    again, _ = load_model(made.path)
    same_logits(logits(again, TOKENS), expected)
    after = find_groups(again)
    assert after.by_name["layers.0.heads"].units == before.by_name["layers.0.heads"].units
    assert after.by_name["layers.0.mlp"].units < before.by_name["layers.0.mlp"].units


def test_the_reasons_of_a_family_are_told(tmp_path):
    source = save(family_model("granite"), byte_level_tokenizer(), tmp_path / "ours", proof=False).path
    with pytest.raises(ValueError, match="multipliers of its own scale embeddings"):
        export(source, tmp_path / "out", "gguf")
    source = save(family_model("phi"), byte_level_tokenizer(), tmp_path / "phi", proof=False).path
    with pytest.raises(ValueError, match=r"self_attn.dense, mlp.fc1, mlp.fc2, which are none of Llama's"):
        export(source, tmp_path / "out", "deci")
