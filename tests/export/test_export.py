"""Exports: what other programs' formats hold is what the checkpoint holds, and what cannot be held is refused."""

import json

import pytest
import torch

from pruneengine.checkpoint.load import load_model
from pruneengine.checkpoint.reload_proof import ReloadError
from pruneengine.checkpoint.write import save
from pruneengine.export import compare_logits as compare
from pruneengine.export import export
from pruneengine.export.deci import deci_heads
from pruneengine.export.gguf import llama_cpp
from pruneengine.export.gguf.tensors import pair_rows
from pruneengine.export.model_shape import model_shape
from pruneengine.export.padding import pad_model, widen
from tests.checkpoint.test_write import EQUAL, UNEQUAL, prune_by_hand
from tests.helpers.tiny import logits, tiny_model, tiny_tokens
from tests.helpers.tiny_exports import (
    VARIANTS,
    WIDTHS,
    byte_level_tokenizer,
    checkpoint,
    reader_of,
)

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("variant", [*VARIANTS, "qwen3-norms"])
def test_padded_checkpoints_open_plainly(variant, tmp_path):
    source = checkpoint(tmp_path, variant, UNEQUAL)
    made = export(source, tmp_path / "out", "pad", proof=False)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
    assert not any(info.values())
    shape = model_shape(model)
    assert (set(shape.kv_heads), set(shape.channels)) == ({3}, {72})
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


@pytest.mark.parametrize("format", ["gguf", "deci", "pad"])
def test_bfloat16_checkpoints(format, tmp_path):
    model = prune_by_hand(tiny_model(dtype=torch.bfloat16), UNEQUAL)
    source = save(model, byte_level_tokenizer(), tmp_path / "ours", proof=False).path
    made = export(source, tmp_path / "out", format)
    (sentence,) = [line for line in made.written.verified if line.startswith(("padded", "opened from", "the file's"))]
    assert float(sentence.split("within ")[1].split()[0]) < 1e-4
    if format != "gguf":
        assert json.loads((made.path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_are_compared_in_float32(dtype, monkeypatch):
    model = tiny_model(dtype=dtype)
    before = {name: (id(parameter), parameter.dtype) for name, parameter in model.named_parameters()}
    expected = logits(tiny_model(dtype=dtype).float(), tiny_tokens())
    found = compare.logits(model, tiny_tokens())
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max())
    assert not torch.allclose(logits(model, tiny_tokens()).float(), expected, rtol=1e-4, atol=1e-4)
    # Also where the model stops on its way.
    monkeypatch.setattr(model.model.layers[1], "forward", None)
    with pytest.raises(TypeError):
        compare.logits(model, tiny_tokens())
    assert {name: (id(parameter), parameter.dtype) for name, parameter in model.named_parameters()} == before


@pytest.mark.parametrize("format", ["gguf", "deci"])
def test_biases_that_stand_in_for_removed_units(format, tmp_path):
    model = prune_by_hand(tiny_model("qwen2-biases"), UNEQUAL)
    for layer in model.model.layers:
        layer.mlp.down_proj.bias = torch.nn.Parameter(torch.randn(60))
    source = save(model, byte_level_tokenizer(), tmp_path / "ours", proof=False).path
    assert model_shape(load_model(source)[0]).biases_without_flag
    made = export(source, tmp_path / "out", format)
    assert "logits within" in made.written.verified[-1]
    if format == "deci":
        config = json.loads((made.path / "config.json").read_text())
        assert (config["qkv_bias"], config["attention_bias"], config["mlp_bias"]) == (True, False, True)
    else:
        biases = {entry.name.split(".", 2)[2] for entry in reader_of(made.path).tensors if "bias" in entry.name}
        assert biases == {"attn_q.bias", "attn_k.bias", "attn_v.bias", "ffn_down.bias"}
    with pytest.raises(ValueError, match="would still need the modelling file"):
        export(source, tmp_path / "padded", "pad")


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
    shape = model_shape(prune_by_hand(tiny_model("llama-mha-untied"), [(5, 40), (4, 40), (1, 40)]))
    assert deci_heads(shape) == (5, [5, 5, 1])
    blocks = json.loads((made.path / "config.json").read_text())["block_configs"]
    assert [block["attention"]["n_heads_in_group"] for block in blocks] == [2, 3, 6]


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
    with pytest.raises(ValueError, match="is what the run reads itself"):
        export(source, source, overwrite=True)
    with pytest.raises(ValueError, match=r"holds .*, which the run needs"):
        export(source, tmp_path, overwrite=True)
    made = export(source, tmp_path / "out")
    with pytest.raises(FileExistsError, match="--overwrite"):
        export(source, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in made.path.iterdir()}
    monkeypatch.setattr("pruneengine.export.gguf.tensors.pair_rows", lambda rows, dim: rows)
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


def test_an_export_says_what_it_was_verified_with(tmp_path):
    made = export(checkpoint(tmp_path), tmp_path / "out")
    values = json.loads((made.path / "export.json").read_text())
    assert values["verified"] == list(made.written.verified)
    card = (made.path / "README.md").read_text()
    assert all(line in card for line in (*made.written.verified, *made.written.remarks))
    if llama_cpp.missing():
        assert "not run in llama.cpp: llama-cpp-python is not installed" in card
    assert made.bytes == sum(file.stat().st_size for file in made.path.iterdir())


def test_an_exported_file_is_not_replaced_by_its_own_export(tmp_path):
    made = export(checkpoint(tmp_path), tmp_path / "out", proof=False)
    (file,) = made.path.glob("*.gguf")
    with pytest.raises(ValueError, match=r"holds .*, which the run needs"):
        export(file, made.path, dtype="float32", overwrite=True)
    assert file.exists()


def test_the_source_of_an_export_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint(tmp_path))
    made = export(".", tmp_path / "with space", proof=False)
    assert "llama-cli -m 'with space-f16.gguf'" in made.written.opens_with
    assert json.loads((made.path / "export.json").read_text())["source"] == "ours"


def test_a_proof_can_be_left_out(tmp_path):
    made = export(checkpoint(tmp_path), tmp_path / "out", proof=False)
    assert made.written.verified == ()
    assert "nothing: asked not to" in (made.path / "README.md").read_text()


def test_the_command_line_exports_and_inspects(tmp_path):
    testing = pytest.importorskip("typer.testing")
    from pruneengine.cli import app

    source = checkpoint(tmp_path, widths=UNEQUAL)
    done = testing.CliRunner().invoke(app, ["export", str(source), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "verified: read back by gguf: all 29 tensors" in done.output
    assert "architecture deci" in done.output
    done = testing.CliRunner().invoke(app, ["inspect", str(source)])
    assert done.exit_code == 0, done.output
    assert "export --format pad" in done.output
    assert "the layers differ" in done.output
