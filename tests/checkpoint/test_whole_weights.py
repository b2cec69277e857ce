"""Checkpoints whose weights are not those of their config are refused by name and count, by every way to load one."""

import json
import logging
import shutil
from logging.handlers import BufferingHandler

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruneengine.checkpoint.load import load_model, load_skeleton
from pruneengine.checkpoint.whole_weights import check_loading_info
from tests.cli.test_prune import run


def without(name):
    return lambda weights: {key: value for key, value in weights.items() if name not in key}


def changed(name, change):
    return lambda weights: {key: change(value) if key == name else value for key, value in weights.items()}


UP = "model.layers.1.mlp.up_proj.weight"
BROKEN = {
    "a linear": (without(UP), {}, rf"1 tensor \({UP}\) missing, which would be random"),
    "a layer": (
        without("layers.1."),
        {},
        r"9 tensors \(model\.layers\.1\.input_layernorm\.weight.*and 6 more\) missing",
    ),
    "the embedding": (without("embed_tokens"), {}, r"model\.embed_tokens\.weight.* missing"),
    "more layers than weights": (None, {"num_hidden_layers": 6}, "27 tensors .* missing"),
    "fewer layers than weights": (None, {"num_hidden_layers": 2}, "9 tensors .* that the config has no place for"),
    "compiled": (
        lambda weights: {f"_orig_mod.{key}": value for key, value in weights.items()},
        {},
        r"missing.*29 tensors \(_orig_mod\..* that the config has no place for",
    ),
    "another shape": (
        changed(UP, lambda w: w[:-1].contiguous()),
        {},
        rf"1 tensor \({UP} \[71, 60\] for \[72, 60\]\) of another shape",
    ),
    "left over": (
        lambda w: w | {"foo.bar": torch.zeros(2)},
        {},
        r"1 tensor \(foo\.bar\) that the config has no place for",
    ),
    "integers": (changed(UP, lambda w: w.to(torch.int8)), {}, rf"1 tensor \({UP} I8\) not in floating point"),
    "eight-bit floats": (
        changed(UP, lambda w: w.to(torch.float8_e4m3fn)),
        {},
        rf"1 tensor \({UP} F8_E4M3\) not in floating point",
    ),
    "quantised": (None, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(gptq\)"),
}


@pytest.fixture(params=BROKEN)
def broken(request, folder, tmp_path):
    """A model folder with one fault, and what must be said of it."""
    change, config, message = BROKEN[request.param]
    path = tmp_path / "broken"
    shutil.copytree(folder / "model", path)
    if change is not None:
        save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors", {"format": "pt"})
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | config))
    return path, message


def test_a_broken_checkpoint_is_refused_from_python(broken):
    path, message = broken
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_transformers_prints_no_table_beside_the_message(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "broken")
    weights = without(UP)(load_file(tmp_path / "broken" / "model.safetensors"))
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    logger, handler = logging.getLogger("transformers.modeling_utils"), BufferingHandler(1000)
    logger.addHandler(handler)
    try:
        with pytest.raises(ValueError, match="missing, which would be random"):
            load_model(tmp_path / "broken")
    finally:
        logger.removeHandler(handler)
    assert not [record for record in handler.buffer if "LOAD REPORT" in record.getMessage()]


@pytest.mark.parametrize("verb", ["prune", "eval", "search", "recover", "export"])
def test_a_broken_checkpoint_is_refused_by_every_verb(folder, tmp_path, verb):
    path = tmp_path / "broken"
    shutil.copytree(folder / "model", path)
    save_file(without(UP)(load_file(path / "model.safetensors")), path / "model.safetensors", {"format": "pt"})
    text = folder / "text.txt"
    options = {
        "prune": ("--method", "magnitude_l1", "--ratio", 0.2, "--out", tmp_path / "out"),
        "eval": ("--text", text, "--out", tmp_path / "results.json"),
        "search": ("--ratio", 0.2, "--eval", text, "--out", tmp_path / "out"),
        "recover": ("--data", text, "--out", tmp_path / "out"),
        "export": ("--format", "gguf", "--out", tmp_path / "out"),
    }
    done = run(verb, path, *options[verb])
    assert (done.returncode, "missing, which would be random" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "results.json").exists()


def test_a_broken_teacher_is_refused(folder, tmp_path):
    path = tmp_path / "teacher"
    shutil.copytree(folder / "model", path)
    save_file(without(UP)(load_file(path / "model.safetensors")), path / "model.safetensors", {"format": "pt"})
    options = ("--data", folder / "text.txt", "--teacher", path, "--out", tmp_path / "out", "--max-steps", 1)
    done = run("recover", folder / "model", *options)
    assert (done.returncode, "missing, which would be random" in done.stderr) == (2, True), done.stderr


def test_inspect_refuses_a_quantised_model(folder, tmp_path):
    path = tmp_path / "quantised"
    shutil.copytree(folder / "model", path)
    values = json.loads((path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"is quantised \(awq\)"):
        load_skeleton(path)
    done = run("inspect", path)
    assert (done.returncode, "is quantised (awq)" in done.stderr) == (2, True), done.stderr


def test_a_model_in_its_authors_layout_beside_the_weights_is_not_looked_at(folder, tmp_path):
    path = tmp_path / "both"
    shutil.copytree(folder / "model", path)
    save_file({"layers.0.wq": torch.zeros(2, 2, dtype=torch.int8)}, path / "consolidated.safetensors")
    load_model(path)


def test_a_whole_checkpoint_has_nothing_to_say(folder):
    check_loading_info({"missing_keys": set(), "unexpected_keys": [], "mismatched_keys": set(), "error_msgs": []}, "m")
    model, _ = load_model(folder / "model")
    assert sum(p.numel() for p in model.parameters()) > 0
