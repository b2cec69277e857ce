"""Loader of a model and its tokenizer from a folder, a GGUF file or the hub."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pruneengine.checkpoint.config_json import MODELING_FILE, MODELING_MODULE, code_beside, runs_shipped_code
from pruneengine.checkpoint.whole_weights import check_floating, check_full_precision, check_loading_info, stored_dtypes
from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.common.optional_imports import require_extra
from pruneengine.model import auto_class
from pruneengine.model.experts import unfuse_experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTERS = "adapter_config.json"
TOKENIZER_FILES = ("*token*", "vocab*", "*.model")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_model(
    source: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Args:
        source: a model folder; a ``.gguf`` file, or a folder with exactly one and no ``config.json``; or a hub name.
            Only a hub name may use the network.
        dtype: type of the weights; GGUF weights are dequantised to it.
        device: where the model goes.
        trust_remote_code: run modelling code that comes with the model. Checkpoints written by pruneengine with
            layers of different widths, or with biases, need no permission as long as their modelling file is unchanged,
            and no other code lies beside it.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the folder holds no model, no tokenizer, or several GGUF files; or a modelling file was changed.
        ConnectionError: the hub does not answer, or has no such model.
        ImportError: the extra ``hf`` is not installed.
    """
    if not isinstance(dtype, torch.dtype):
        raise InputTypeError(f"dtype must be a torch.dtype, got {dtype!r}")
    device, (folder, gguf) = torch.device(device), _locate(source)
    with require_extra("hf"):
        import accelerate  # noqa: F401
        import transformers  # noqa: F401
    if folder is None:
        model, tokenizer = _load_hub(str(source), trust_remote_code, dtype)
    elif gguf is not None:
        model, tokenizer = _load_gguf(folder, gguf, dtype)
    else:
        model, tokenizer = _load_folder(folder, trust_remote_code, dtype)
    return unfuse_experts(model).to(device).eval(), tokenizer


def load_skeleton(source: str | Path, trust_remote_code: bool = False) -> nn.Module:
    """Return the model of ``source`` on the meta device, with every shape and no weights; only its config is read.

    Raises:
        As :func:`load_model`.
    """
    folder, gguf = _locate(source)
    with require_extra("hf"):
        from transformers import AutoConfig
    place = str(source) if folder is None else folder
    trust = trust_remote_code if folder is None or gguf is not None else _may_run_code(folder, trust_remote_code)
    options = {"gguf_file": gguf} if gguf else {"trust_remote_code": trust_remote_code}
    refused: type[Exception] = InputError
    what = f"{source} gives no configuration"
    if folder is None:
        refused, what = ConnectionError, f"{str(source)!r} is no local folder and the hub does not give it"
    with _one_line(what, refused), torch.device("meta"):
        config = AutoConfig.from_pretrained(place, local_files_only=folder is not None, **options)
        skeleton = unfuse_experts(_opener(config.model_type).from_config(config, trust_remote_code=trust))
    if gguf is None:
        check_full_precision(config, str(source))
    return skeleton


def local_config(source: str | Path) -> Any:
    """Return the config of a model folder, of which only ``config.json`` is read; None for any other source.

    A config that does not load, or that code of the model's own gives, is None, too: loading says why.
    """
    from transformers import AutoConfig

    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        return None
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:
        return None


def load_weights_of_gguf(file: Path, dtype: torch.dtype) -> nn.Module:
    """Load the model of a GGUF file through transformers, without its tokenizer; ValueError if that fails."""
    from transformers import AutoModelForCausalLM

    with _parsed_once():
        model = _whole(AutoModelForCausalLM, file.parent, file, gguf_file=file.name, dtype=dtype, local_files_only=True)
    return model.eval()


def _locate(source: str | Path) -> tuple[Path | None, str | None]:
    """Return folder and GGUF file name; no folder for a hub name, no file name for a model folder."""
    path = Path(source).expanduser()
    if path.exists():
        return _local(path)
    if HUB_NAME.fullmatch(str(source)) and path.suffix != ".gguf" and str(source)[0] not in ".":
        return None, None
    raise FileNotFoundError(f"no model at {str(source)!r}: there is no such file or folder")


def _local(path: Path) -> tuple[Path, str | None]:
    """Return the folder to load from and, if the model is a GGUF file, its name in the folder."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is not a model: expected a folder or a .gguf file")
        return path.parent, path.name
    if (path / "config.json").is_file():
        return path, None
    names = sorted(file.name for file in path.glob("*.gguf"))
    if len(names) != 1:
        reason = f"several GGUF files ({', '.join(names[:4])}); name one" if names else "no config.json and no .gguf"
        raise InputError(f"{path} is not a model folder: {reason}")
    return path, names[0]


def _opener(model_type: str | None) -> Any:
    import transformers

    return getattr(transformers, auto_class(model_type))


def _load_folder(folder: Path, trust_remote_code: bool, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers import AutoTokenizer

    with _one_line(f"{folder / 'config.json'} does not load"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        opener = _opener(config.get("model_type"))
    check_full_precision(config, str(folder))
    if not any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise InputError(f"{folder} holds no tokenizer: expected tokenizer.json, or another of its model's family")
    trust = _may_run_code(folder, trust_remote_code)
    with _one_line(f"{folder} does not load"):
        stored = stored_dtypes(folder)
    check_floating(stored, str(folder))
    model = _whole(opener, folder, folder, dtype=dtype, trust_remote_code=trust, local_files_only=True)
    with _one_line(f"the tokenizer of {folder} does not load"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    return model, tokenizer


def _whole(
    opener: Any, place: str | Path, source: object, kind: type[Exception] = InputError, **options: Any
) -> PreTrainedModel:
    """Load a model whose files hold all its weights and nothing else; ValueError otherwise."""
    with _one_line(f"{source} does not load", kind), _without_table():
        model, info = opener.from_pretrained(place, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    check_loading_info(info, str(source))
    return model


def _may_run_code(folder: Path, trust_remote_code: bool) -> bool:
    """Return True if the folder's modelling code may run: with permission, or if it is the shipped file and no other.

    Raises:
        ValueError: there is other code and no permission, ``config.json`` does not load, or there are adapters.
    """
    with _one_line(f"{folder / 'config.json'} does not load"):
        shipped = runs_shipped_code(folder)
    if (folder / ADAPTERS).exists():
        # transformers would open the model that the adapters name, wherever it is, in place of this one.
        raise InputError(f"{folder} carries adapters ({ADAPTERS}): merge them first")
    if trust_remote_code:
        return True
    if (folder / MODELING_FILE.name).exists() and not shipped:
        raise InputError(
            f"{folder / MODELING_FILE.name} is not the {MODELING_MODULE} this version writes, or the auto_map of "
            "config.json names other code; read it, then pass trust_remote_code=True"
        )
    if shipped and (others := code_beside(folder)):
        raise InputError(
            f"{folder} holds code besides {MODELING_FILE.name} ({', '.join(others[:3])}), which would run; read it, "
            "then pass trust_remote_code=True"
        )
    return shipped


def _load_hub(name: str, trust_remote_code: bool, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import cached_file

    options = {"trust_remote_code": trust_remote_code, "local_files_only": not _hub_answers(name)}
    with _one_line(f"{name!r} is no local folder and the hub does not give it", ConnectionError):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        config = AutoConfig.from_pretrained(name, **options)
        opener = _opener(config.model_type)
    check_full_precision(config, name)
    model = _whole(opener, name, repr(name), ConnectionError, dtype=dtype, **options)
    with _one_line(f"{name} does not load"):
        stored = stored_dtypes(Path(cached_file(name, "config.json", local_files_only=True)).parent)
    check_floating(stored, name)
    return model, tokenizer


def _hub_answers(name: str) -> bool:
    """Ask the hub once, without retries, so that a hub out of reach leads to the local cache at once."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError:
        return True
    # The HTTP library, and so the type of its errors, differs between versions of huggingface_hub.
    except Exception:
        return False
    return True


def _load_gguf(folder: Path, name: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    with require_extra("hf"):
        import gguf  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _parsed_once():
        loaded = _whole(AutoModelForCausalLM, folder, folder / name, gguf_file=name, dtype=dtype, local_files_only=True)
    with _parsed_once(), _one_line(f"{folder / name} does not load"):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    # The loaded model counts as quantised and refuses to be saved; one built from its weights is an ordinary model.
    config = loaded.config
    for leftover in ("quantization_config", "_model_name_or_path"):
        config.__dict__.pop(leftover, None)
    config.rms_norm_eps = _decimal(config.rms_norm_eps)
    model = type(loaded).from_pretrained(None, config=config, state_dict=loaded.state_dict(), dtype=dtype)
    model.generation_config = loaded.generation_config
    for leftover in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(leftover, None)
    return model, tokenizer


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once: it asks for the same reader and name map hundreds of times."""
    import gguf

    originals = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = (cache(original) for original in originals)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = originals


def _decimal(value: float) -> float:
    """Return the shortest decimal number of a value that was stored as float32: 9.99999975e-06 -> 1e-05."""
    return float(str(np.float32(value)))


@contextmanager
def _without_table() -> Iterator[None]:
    """Drop transformers' table of missing and left-over weights; :func:`check_loading_info` says it in one line."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def _one_line(what: str, kind: type[Exception] = InputError) -> Iterator[None]:
    """Raise ``kind`` with one line in place of any error of a loader; the loaders' own errors are of many types."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        # Whole: the first line of some loaders names the fault, of others only that there is one.
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError):  # its text is the key alone
            reason = f"KeyError: {reason}"
        raise kind(f"{what}: {reason}") from error
