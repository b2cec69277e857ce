"""Baichuan, for which transformers has no class: written as the Llama that computes the same."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pruneengine.apply import compact
from pruneengine.checkpoint import save
from pruneengine.export import export
from pruneengine.loading import load_model
from pruneengine.structure import find_groups
from pruneengine.twin import as_written
from tests import modeling_baichuan
from tests.families import family_model
from tests.test_families import TOKENS, pruned
from tests.tiny import logits
from tests.tiny_exports import byte_level_tokenizer


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_twin_computes_the_same_and_leaves_the_model_alone():
    model = family_model("baichuan")
    compact(model, pruned(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = as_written(model)
    assert (twin.config.model_type, type(twin).__name__) == ("llama", "LlamaForCausalLM")
    close(logits(twin, TOKENS), logits(model, TOKENS))
    packed = model.model.layers[1].self_attn.W_pack.weight
    rows = packed.shape[0] // 3
    assert torch.equal(twin.model.layers[1].self_attn.k_proj.weight, packed[rows : 2 * rows])
    assert model.model.layers[0].mlp.up_proj.weight.data_ptr() == twin.model.layers[0].mlp.up_proj.weight.data_ptr()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in model.parameters())


def test_other_families_are_written_as_they_are():
    model = family_model("phi3")
    assert as_written(model) is model


def test_tied_embeddings_stay_tied():
    model = family_model("baichuan")
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    twin = as_written(model)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    close(logits(twin, TOKENS), logits(model, TOKENS))


@pytest.fixture
def remote(tmp_path):
    """A folder as the hub has it: weights, a tokenizer, and a modelling file that its config names."""
    folder = tmp_path / "remote"
    model = family_model("baichuan")
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    code = Path(modeling_baichuan.__file__)
    (folder / code.name).write_text(code.read_text())
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "BaichuanConfig", "AutoModelForCausalLM": "BaichuanForCausalLM"}
    config["auto_map"] = {opener: f"{code.stem}.{name}" for opener, name in names.items()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_with_remote_code_is_pruned_and_saved_without_it(remote, tmp_path):
    model, tokenizer = load_model(remote, trust_remote_code=True)
    dense = model.config.to_dict()
    compact(model, pruned(model))
    saved = save(model, tokenizer, tmp_path / "out", dense_config=dense)
    assert saved.proof.max_difference <= saved.proof.tolerance
    assert not (saved.path / "modeling_baichuan.py").exists()
    assert json.loads((saved.path / "config.json").read_text())["auto_map"] == {
        "AutoModelForCausalLM": "modeling_pruned.PrunedLlamaForCausalLM"
    }
    card = (saved.path / "README.md").read_text()
    assert "modeling_pruned.py" in card
    assert "written as its twin, a llama" in card


@pytest.mark.parametrize("format", ["gguf", "deci"])
def test_a_checkpoint_with_remote_code_is_exported(format, remote, tmp_path):
    made = export(remote, tmp_path / "out", format, trust_remote_code=True)
    assert "logits within" in made.written.verified[-1]


def test_what_the_twin_does_not_compute_is_refused():
    model = family_model("baichuan")
    head, model.lm_head = model.lm_head, nn.Module()
    with pytest.raises(ValueError, match="lm_head is not supported: the head of Baichuan 2 normalises"):
        find_groups(model)
    model.lm_head = head
    del model.model.layers[0].self_attn.rotary_emb
    with pytest.raises(ValueError, match="Baichuan-13B gives every layer one slope"):
        find_groups(model)
