"""Twins with Llama's linears: Baichuan, for which transformers has no class, is saved as one, Phi-3 exported."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pruneengine.checkpoint.equivalent_class import model_to_save, split_fused_linears
from pruneengine.checkpoint.load import load_model
from pruneengine.checkpoint.reload_proof import ReloadError
from pruneengine.checkpoint.write import save
from pruneengine.export import export
from pruneengine.export import run as exporting
from pruneengine.model import find_groups
from pruneengine.sparse.plan import SparsePlan
from pruneengine.structured.apply import compact
from pruneengine.structured.compensate import compensate
from tests.cli.test_prune import run
from tests.helpers import modeling_baichuan
from tests.helpers.families import family_model
from tests.helpers.tiny import logits
from tests.helpers.tiny_exports import byte_level_tokenizer
from tests.helpers.tiny_folder import TEXT
from tests.model.test_families import TOKENS, pruned


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_equivalent_class_computes_the_same_and_leaves_the_model_alone():
    model = family_model("baichuan")
    compact(model, pruned(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    equivalent = model_to_save(model)
    assert (equivalent.config.model_type, type(equivalent).__name__) == ("llama", "LlamaForCausalLM")
    close(logits(equivalent, TOKENS), logits(model, TOKENS))
    packed = model.model.layers[1].self_attn.W_pack.weight
    rows = packed.shape[0] // 3
    assert torch.equal(equivalent.model.layers[1].self_attn.k_proj.weight, packed[rows : 2 * rows])
    assert (
        model.model.layers[0].mlp.up_proj.weight.data_ptr() == equivalent.model.layers[0].mlp.up_proj.weight.data_ptr()
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert sum(p.numel() for p in equivalent.parameters()) == sum(p.numel() for p in model.parameters())


def test_other_families_are_written_as_they_are():
    model = family_model("phi3")
    assert model_to_save(model) is model
    assert split_fused_linears(model := family_model("granite")) is model


@pytest.mark.parametrize("format", ["gguf", "deci"])
def test_phi3_is_exported_as_a_mistral_with_its_window_and_new_biases(format, tmp_path):
    model = family_model("phi3")
    model.config.sliding_window = 8
    plan = pruned(model, ("mlp",), ratio=0.3)
    compact(model, plan, corrections=compensate(model, plan, TOKENS, "bias").corrections)
    equivalent = split_fused_linears(model)
    assert (type(equivalent).__name__, equivalent.config.sliding_window) == ("MistralForCausalLM", 8)
    assert equivalent.model.layers[0].mlp.down_proj.bias is not None
    close(logits(equivalent, TOKENS), logits(model, TOKENS))
    source = save(model, byte_level_tokenizer(), tmp_path / "ours", proof=False).path
    made = export(source, tmp_path / "out", format)
    assert "as a mistral, shared linears split: logits within" in made.written.verified[0]
    assert len(made.written.verified) > 1
    assert any("limited to the attention window of 8 tokens" in line for line in made.written.remarks)


def test_a_wrong_equivalent_does_not_appear(tmp_path, monkeypatch):
    source = save(family_model("phi3"), byte_level_tokenizer(), tmp_path / "ours", proof=False).path

    def swapped(model):
        mlp = (equivalent := split_fused_linears(model)).model.layers[0].mlp
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
        return equivalent

    write, check, _ = exporting.FORMATS["deci"]
    monkeypatch.setitem(exporting.FORMATS, "deci", (write, check, swapped))
    with pytest.raises(ReloadError, match="as a mistral, shared linears split: logits differ"):
        export(source, tmp_path / "out", "deci")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_tied_embeddings_stay_tied():
    model = family_model("baichuan")
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    equivalent = model_to_save(model)
    assert equivalent.lm_head.weight is equivalent.model.embed_tokens.weight
    close(logits(equivalent, TOKENS), logits(model, TOKENS))


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


def test_the_command_line_prunes_a_checkpoint_with_remote_code(remote, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    sizes = ("--nsamples", 4, "--seqlen", 16, "--eval-seqlen", 16, "--eval-windows", 2, "--no-proof")
    text = ("--trust-remote-code", "--calibration", tmp_path / "text.txt", "--eval-text", tmp_path / "text.txt", *sizes)
    done = run("prune", remote, "--sparsity", 0.5, *text, "--out", tmp_path / "sparse")
    assert done.returncode == 0, done.stderr
    plan = SparsePlan.load(tmp_path / "sparse" / "plan.json")
    packed = plan.removed["model.layers.0.self_attn.W_pack"]
    layer = load_model(tmp_path / "sparse")[0].model.layers[0].self_attn
    assert sum(int((part.weight == 0).sum()) for part in (layer.q_proj, layer.k_proj, layer.v_proj)) == packed > 0
    assert "exactly as planned in 15 of 15 matrices" in done.stdout
    done = run("prune", remote, "--method", "vectorize", "--ratio", 0.3, *text, "--out", tmp_path / "narrow")
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "narrow")[0].config.num_attention_heads < 4
    done = run("inspect", remote, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    assert "architecture llama" in done.stdout


@pytest.mark.parametrize("format", ["gguf", "deci"])
def test_a_checkpoint_with_remote_code_is_exported(format, remote, tmp_path):
    made = export(remote, tmp_path / "out", format, trust_remote_code=True)
    assert "logits within" in made.written.verified[-1]


def test_what_the_equivalent_class_does_not_compute_is_refused():
    model = family_model("baichuan")
    head, model.lm_head = model.lm_head, nn.Module()
    with pytest.raises(ValueError, match="lm_head is not supported: the head of Baichuan 2 normalises"):
        find_groups(model)
    model.lm_head = head
    del model.model.layers[0].self_attn.rotary_emb
    with pytest.raises(ValueError, match="Baichuan-13B gives every layer one slope"):
        find_groups(model)
