"""Saving: what plain transformers reads back, and what is left behind when something fails."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pruneengine.checkpoint import output_folder, reload_proof
from pruneengine.checkpoint import write as checkpoint
from pruneengine.checkpoint.load import load_model
from pruneengine.checkpoint.reload_proof import ReloadError, prove_reload, reload_and_generate
from pruneengine.checkpoint.write import save
from pruneengine.model import find_groups
from pruneengine.model.config_sync import layer_widths, sync_config
from tests.helpers.tiny import logits, tiny_model, tiny_tokens

transformers = pytest.importorskip("transformers")
AutoModel = transformers.AutoModelForCausalLM
VARIANTS = ["llama-gqa-tied", "llama-mha-untied", "llama-biases", "mistral-sliding", "qwen2-biases", "qwen3-norms"]
# Key-value heads and channels of the three layers.
EQUAL, UNEQUAL = [(1, 40)] * 3, [(2, 72), (1, 24), (3, 56)]


def prune_by_hand(model, widths, layers=(0, 1, 2)):
    """Keep the first key-value heads and channels of each layer, and the given layers."""
    config = model.config
    group = config.num_attention_heads // config.num_key_value_heads
    for layer, (heads, channels) in zip(model.model.layers, widths, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        head_dim = attention.head_dim
        for name, rows in {"q_proj": heads * group, "k_proj": heads, "v_proj": heads}.items():
            narrow(getattr(attention, name), rows=rows * head_dim)
        narrow(attention.o_proj, columns=heads * group * head_dim)
        narrow(mlp.gate_proj, rows=channels)
        narrow(mlp.up_proj, rows=channels)
        narrow(mlp.down_proj, columns=channels)
    model.model.layers = nn.ModuleList(model.model.layers[i] for i in layers)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    config.num_hidden_layers = len(layers)
    return model


def narrow(linear, rows=None, columns=None):
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    if linear.bias is not None and rows is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
    linear.out_features, linear.in_features = linear.weight.shape


def reopen(path, **options):
    model, info = AutoModel.from_pretrained(path, dtype="auto", output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def config_of(path):
    return json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_widths_load_plainly(variant, tmp_path):
    model = prune_by_hand(tiny_model(variant), EQUAL)
    saved = save(model, None, tmp_path / "out", proof=False)
    again = reopen(saved.path)
    assert torch.equal(logits(again, tiny_tokens()), logits(model, tiny_tokens()))
    config = config_of(saved.path)
    group = 1 if variant == "llama-mha-untied" else 2
    expected = {"num_attention_heads": group, "num_key_value_heads": 1, "intermediate_size": 40, "head_dim": 12}
    assert {name: config[name] for name in expected} == expected
    assert config["tie_word_embeddings"] is (variant != "llama-mha-untied")
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is config["tie_word_embeddings"]
    assert saved.loads_with == "AutoModelForCausalLM.from_pretrained(path)"
    assert not {"auto_map", "pruneengine_widths"} & set(config)
    assert not (saved.path / "modeling_pruned.py").exists()


@pytest.mark.parametrize("variant", VARIANTS)
def test_unequal_widths_load_with_the_modelling_file(variant, tmp_path):
    model = prune_by_hand(tiny_model(variant), UNEQUAL)
    saved = save(model, None, tmp_path / "out", proof=False)
    assert "trust_remote_code=True" in saved.loads_with
    again = reopen(saved.path, trust_remote_code=True)
    assert type(again).__module__.startswith("transformers_modules.")
    assert layer_widths(find_groups(again)) == layer_widths(find_groups(model))
    assert torch.equal(logits(again, tiny_tokens()), logits(model, tiny_tokens()))
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    assert tied is (variant != "llama-mha-untied")


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("variant", ["llama-gqa-tied", "mistral-sliding", "qwen3-norms"])
def test_generation_with_cache_equals_without(variant, cache, tmp_path):
    save(prune_by_hand(tiny_model(variant), UNEQUAL), None, tmp_path / "out", proof=False)
    model = reopen(tmp_path / "out", trust_remote_code=True)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    tokens = tiny_tokens(2, 9)
    static = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    with_cache = model.generate(tokens, use_cache=True, **options, **static)
    assert torch.equal(with_cache, model.generate(tokens, use_cache=False, **options))


def test_a_per_layer_checkpoint_saves_again(tmp_path):
    model = prune_by_hand(tiny_model(), UNEQUAL)
    save(model, None, tmp_path / "ours", proof=False)
    again = reopen(tmp_path / "ours", trust_remote_code=True)
    again.save_pretrained(tmp_path / "theirs")
    expected = logits(model, tiny_tokens())
    assert torch.equal(logits(reopen(tmp_path / "theirs", trust_remote_code=True), tiny_tokens()), expected)
    # Ours once more, pruned on to equal widths: the modelling file is no longer needed.
    save(prune_by_hand(again, [(1, 24)] * 3), None, tmp_path / "equal", proof=False)
    assert torch.equal(logits(reopen(tmp_path / "equal"), tiny_tokens()), logits(again, tiny_tokens()))
    assert config_of(tmp_path / "equal")["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(("biased", "kind"), [(False, "mistral"), (True, "llama")])
def test_heads_that_do_not_divide_the_hidden_size(biased, kind, tmp_path):
    # transformers' LlamaConfig refuses 8 heads at hidden size 60.
    changes = {"num_attention_heads": 10, "num_key_value_heads": 5}
    model = prune_by_hand(tiny_model("llama-biases" if biased else "llama-gqa-tied", **changes), [(4, 40)] * 3)
    saved = save(model, None, tmp_path / "out", proof=False, dense_config={"model_type": "llama"})
    config = config_of(saved.path)
    assert (config["model_type"], "auto_map" in config) == (kind, biased)
    again = reopen(saved.path, trust_remote_code=biased)
    assert torch.equal(logits(again, tiny_tokens()), logits(model, tiny_tokens()))
    assert ("twin Mistral" in (saved.path / "README.md").read_text()) is not biased


def test_removed_layers_keep_their_own_attention_type(tmp_path):
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    model = tiny_model("qwen2-biases", **sliding)
    assert model.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    prune_by_hand(model, [(3, 72)] * 3, layers=(1, 2))
    sync_config(model)
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    expected = logits(model, tiny_tokens())
    save(model, None, tmp_path / "out", proof=False)
    assert config_of(tmp_path / "out")["max_window_layers"] == 1
    assert torch.equal(logits(reopen(tmp_path / "out"), tiny_tokens()), expected)


@pytest.mark.parametrize(("layers", "widths"), [((0, 2), EQUAL), ((0, 1), UNEQUAL)])
def test_removed_layers_of_llama(layers, widths, tmp_path):
    model = prune_by_hand(tiny_model(), widths, layers)
    save(model, None, tmp_path / "out", proof=False)
    again = reopen(tmp_path / "out", trust_remote_code=widths is UNEQUAL)
    assert len(again.model.layers) == 2
    assert torch.equal(logits(again, tiny_tokens()), logits(model, tiny_tokens()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype, tmp_path):
    model = prune_by_hand(tiny_model(dtype=dtype), EQUAL)
    save(model, None, tmp_path / "out", proof=False)
    again = reopen(tmp_path / "out")
    assert again.dtype == dtype
    assert torch.equal(again.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, **{chr(code): code - 31 for code in range(32, 127)}}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token="[UNK]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


def test_the_whole_folder_and_the_proof(tokenizer, tmp_path):
    model = prune_by_hand(tiny_model(), UNEQUAL)
    model.generation_config.temperature = 0.5  # with greedy decoding save_pretrained would refuse it
    plan = SimpleNamespace(to_json=lambda: '{"units": 3}')
    saved = save(
        model,
        tokenizer,
        tmp_path / "new" / "out",
        plan=plan,
        recipe={"method": "wanda", "ratio": 0.2},
        report={"perplexity": {"before": 12.5, "after": 13.25}, "curve": [1, 2]},
        dense_config=tiny_model().config,
        extra_files={"notes.txt": "hello"},
    )
    assert saved.proof.max_difference <= saved.proof.tolerance
    assert saved.proof.argmax_agreement == 1.0
    assert saved.proof.loader == saved.loads_with
    files = {file.name: file for file in saved.path.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "generation_config.json", "modeling_pruned.py"} <= set(files)
    assert saved.bytes == sum(file.stat().st_size for file in files.values())
    assert files["plan.json"].read_text() == '{"units": 3}'
    assert files["recipe.yaml"].read_text() == "method: wanda\nratio: 0.2\n"
    assert files["notes.txt"].read_text() == "hello"
    card = files["README.md"].read_text()
    assert "| key-value heads a layer | 3 | 1 to 3 |" in card
    assert "| perplexity.after | 13.25 |" in card
    assert "method: wanda" in card
    assert len({oct(file.stat().st_mode) for file in files.values()}) == 1
    assert [path.name for path in saved.path.parent.iterdir()] == ["out"]
    loaded, its_tokenizer = load_model(saved.path)
    assert torch.equal(logits(loaded, tiny_tokens()), logits(model, tiny_tokens()))
    assert its_tokenizer("abc")["input_ids"] == tokenizer("abc")["input_ids"]
    here = its_tokenizer.decode(
        loaded.generate(**its_tokenizer("once", return_tensors="pt"), max_new_tokens=5, do_sample=False)[0, 4:],
        skip_special_tokens=True,
    )
    assert reload_and_generate(saved.path, "once", max_new_tokens=5) == here


def test_a_wrong_checkpoint_never_appears(tmp_path, monkeypatch):
    def write_other_weights(model, folder, **_options):
        wrong = tiny_model(seed=1)
        checkpoint_writer(prune_by_hand(wrong, EQUAL), folder)

    checkpoint_writer = checkpoint.write_weights
    monkeypatch.setattr(checkpoint, "write_weights", write_other_weights)
    with pytest.raises(ReloadError, match="other logits: largest difference"):
        save(prune_by_hand(tiny_model(), EQUAL), None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fresh_process
def test_the_proof_names_what_does_not_open(tmp_path):
    model = prune_by_hand(tiny_model(), EQUAL)
    path = save(model, None, tmp_path / "out", proof=False).path
    (path / "model.safetensors").unlink()
    with pytest.raises(ReloadError, match="does not open in a fresh process: OSError"):
        prove_reload(path, model)


@pytest.mark.parametrize("stage", ["write_weights", "share"])
def test_a_failure_leaves_nothing(stage, tmp_path, monkeypatch):
    def fail(*_, **_options):
        raise OSError("disk on fire")

    model = prune_by_hand(tiny_model(), EQUAL)
    old = save(model, None, tmp_path / "out", proof=False, extra_files={"results.json": "old"}).path
    monkeypatch.setattr(checkpoint, stage, fail)
    for name, overwrite in [("new", False), ("out", True)]:
        with pytest.raises(OSError, match="disk on fire"):
            save(model, None, tmp_path / name, proof=False, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == [old]
    assert (old / "results.json").read_text() == "old"
    assert torch.equal(logits(reopen(old), tiny_tokens()), logits(model, tiny_tokens()))


def test_a_write_that_fails_half_way_is_an_error_of_the_system(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fill_up(state, folder, **_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", fill_up)
    with pytest.raises(OSError, match=rf"cannot be written to {tmp_path}: .*No space left on device"):
        save(prune_by_hand(tiny_model(), EQUAL), None, tmp_path / "out", proof=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_swap_brings_the_old_checkpoint_back_and_keeps_the_new_one(tmp_path, monkeypatch):
    model = prune_by_hand(tiny_model(), EQUAL)
    old = save(model, None, tmp_path / "out", proof=False, extra_files={"results.json": "old"}).path
    rename = type(old).rename

    def fail_to_arrive(self, target):
        if target == old and ".replaced-" not in self.name:
            raise OSError(28, "no room")
        return rename(self, target)

    monkeypatch.setattr(output_folder, "_exchange", lambda *_: False)
    monkeypatch.setattr(type(old), "rename", fail_to_arrive)
    with pytest.raises(OSError, match=r"no room; the finished result is kept in .*out\.finished-"):
        save(model, None, old, proof=False, overwrite=True)
    assert (old / "results.json").exists()
    (kept,) = set(tmp_path.iterdir()) - {old}
    assert torch.equal(logits(reopen(kept), tiny_tokens()), logits(model, tiny_tokens()))


def test_overwrite_replaces_all_of_the_old(tmp_path):
    model = prune_by_hand(tiny_model(), UNEQUAL)
    save(model, None, tmp_path / "out", proof=False, extra_files={"results.json": "old"})
    save(prune_by_hand(model, [(1, 24)] * 3), None, tmp_path / "out", proof=False, overwrite=True)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("ended", ["killed", "out of memory"])
def test_a_proof_that_was_stopped_leaves_the_checkpoint_unproved(tmp_path, monkeypatch, ended):
    model = prune_by_hand(tiny_model(), EQUAL)
    code = "import os; os.kill(os.getpid(), 9)" if ended == "killed" else "raise MemoryError"
    script = tmp_path / "reload_child.py"
    script.write_text(code)
    monkeypatch.setattr(reload_proof, "CHILD", script)
    saved = save(model, None, tmp_path / "out")
    assert saved.proof is None
    assert ("SIGKILL" if ended == "killed" else "MemoryError") in saved.unproved
    assert torch.equal(logits(reopen(saved.path), tiny_tokens()), logits(model, tiny_tokens()))


def test_files_that_the_caller_adds_are_replaced_with_the_result(tmp_path):
    model = prune_by_hand(tiny_model(), EQUAL)
    for overwrite in (False, True):
        save(model, None, tmp_path / "out", proof=False, extra_files={"mine.txt": ""}, overwrite=overwrite)
    with pytest.raises(FileExistsError, match=r"did not write \(mine\.txt\): not replaced"):
        save(model, None, tmp_path / "out", proof=False, overwrite=True)


def test_bad_models_and_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown architecture None \(Linear\)"):
        save(nn.Linear(2, 2), None, tmp_path / "out")
    model = tiny_model()
    narrow(model.model.layers[1].self_attn.k_proj, rows=13)
    with pytest.raises(ValueError, match=r"model\.layers\.1: 13 key rows are no whole number of heads of 12"):
        save(model, None, tmp_path / "out")
    for name in ("../evil", "config.json"):
        with pytest.raises(ValueError, match="taken or no plain file name"):
            save(tiny_model(), None, tmp_path / "out", proof=False, extra_files={name: ""})
    assert list(tmp_path.iterdir()) == []


def test_the_modelling_file_stands_alone():
    code = f"import ast, sys; print(ast.dump(ast.parse(open({str(checkpoint.MODELING_FILE)!r}).read())))"
    tree = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "ImportFrom(module='transformers'" in tree
    assert "pruneengine'" not in tree
