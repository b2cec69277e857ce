"""Writer of checkpoints: the folder appears complete or not at all, and is proved in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from pruneengine.checkpoint.config_json import MODELING_FILE, checkpoint_config, loader_of
from pruneengine.checkpoint.equivalent_class import model_to_save
from pruneengine.checkpoint.model_card import model_card
from pruneengine.checkpoint.reload_proof import ReloadProof, prove_reload
from pruneengine.common.files import check_space, check_writable
from pruneengine.common.optional_imports import require_extra
from pruneengine.common.recipes import write_yaml
from pruneengine.model import family_of, find_groups
from pruneengine.model.config_sync import layer_widths
from pruneengine.model.experts import plain_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HasJson(Protocol):
    """Value that gives itself as JSON text, such as a plan."""

    def to_json(self) -> str: ...


@dataclass(frozen=True)
class SavedCheckpoint:
    """Finished checkpoint.

    Attributes:
        path: its folder, absolute.
        bytes: size of all its files.
        loads_with: the call that opens it.
        proof: measurements of the reload proof, or None if it was not requested.
    """

    path: Path
    bytes: int
    loads_with: str
    proof: ReloadProof | None


def save(
    model: PreTrainedModel,
    tokenizer: Any,
    out: str | Path,
    *,
    plan: HasJson | None = None,
    recipe: Mapping[str, Any] | str | None = None,
    report: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    dense_config: Any = None,
    proof: bool = True,
    extra_files: Mapping[str, str] | None = None,
    remarks: tuple[str, Sequence[str]] | None = None,
) -> SavedCheckpoint:
    """Write ``model`` as a checkpoint folder that transformers loads without pruneengine.

    A model whose class transformers lacks is written as its equivalent, see :func:`model_to_save`.

    ``model.config`` is brought in step with the modules. The folder appears complete or not at all. With ``overwrite``
    the old folder stays until the new one is complete and proved.

    Args:
        model: a causal language model of a known family, compacted.
        tokenizer: a tokenizer of transformers, or None to write none.
        out: the folder to create.
        plan: written as ``plan.json``.
        recipe: written as ``recipe.yaml``; a string is written unchanged.
        report: JSON value, written as ``report.json`` and shown in the model card.
        overwrite: replace an existing model folder.
        dense_config: config of the unpruned model (a dict or with ``to_dict()``), for the model card.
        proof: reopen the checkpoint in a fresh process before it appears.
        extra_files: file name -> text.
        remarks: a heading and paragraphs, for the model card.

    Raises:
        FileExistsError, PermissionError: as :func:`check_output`.
        ValueError: the model cannot be written, see :func:`checkpoint_config`.
        OSError: not enough space for the weights.
        ReloadError: the reload proof failed; nothing was written.
    """
    path = check_output(out, overwrite)
    written = model_to_save(model)
    config = checkpoint_config(written)
    loader = loader_of(config)
    texts = {"config.json": _json(config)}
    if recipe is not None:
        texts["recipe.yaml"] = recipe if isinstance(recipe, str) else write_yaml(recipe)
    if report is not None:
        texts["report.json"] = _json(report)
    if plan is not None:
        texts["plan.json"] = plan.to_json()
    dense = dense_config.to_dict() if hasattr(dense_config, "to_dict") else dense_config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    widths = layer_widths(find_groups(model))
    texts["README.md"] = model_card(
        path.name, config, loader, parameters, widths, dense, texts.get("recipe.yaml"), report, remarks
    )
    if "auto_map" in config:
        texts[MODELING_FILE.name] = MODELING_FILE.read_text(encoding="utf-8")
    texts |= _checked_names(extra_files or {}, taken=texts)
    with complete_or_nothing(path) as folder:
        write_weights(written, folder, plain="auto_map" not in config)
        if getattr(model, "generation_config", None) is not None:
            # Not save_pretrained: it refuses sampling settings that many published models carry.
            model.generation_config.to_json_file(folder / "generation_config.json")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        share(folder)
        result = prove_reload(folder, model, tokenizer) if proof else None
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return SavedCheckpoint(path, size, loader, result)


def check_output(out: str | Path, overwrite: bool = False, mark: str = "config.json") -> Path:
    """Return the absolute path of ``out`` if a checkpoint can be written there; call it before any work.

    Args:
        out: the folder to create.
        overwrite: whether a folder that holds the file ``mark`` may be replaced.
        mark: file that marks an earlier result of the same kind.

    Raises:
        FileExistsError: ``out`` is a file; or a folder with content, without ``overwrite`` or not a model folder.
        PermissionError: the folder that ``out`` lies in cannot be written to.
    """
    path = Path(out).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"output {path} is a file, expected a folder")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise FileExistsError(f"output folder {path} is not empty; pass overwrite=True (--overwrite) to replace it")
        if not (path / mark).is_file():
            what = "a model" if mark == "config.json" else f"an earlier result (no {mark})"
            raise FileExistsError(f"output folder {path} holds other things than {what}; it is not replaced")
    check_writable(path.parent)
    return path


def written_here(folder: Path) -> bool:
    """Return True if ``folder`` is a checkpoint that :func:`save` wrote with its plan or recipe."""
    files = ("plan.json", "recipe.yaml")
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in files)


def count_saved_zeros(
    folder: Path, modules: Iterable[str], parts: Mapping[str, Sequence[str]] | None = None
) -> dict[str, int]:
    """Count the zero entries of each module's weight in the files of a checkpoint, by module path.

    ``parts`` names the modules of the checkpoint that together hold a module of the model, for modules that it splits.
    """
    from safetensors import safe_open

    family = family_of(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"), str(folder))
    module_of: dict[str, str] = {}
    for module in modules:
        for part in (parts or {}).get(module, (module,)):
            module_of |= dict.fromkeys((f"{part}.weight", plain_name(f"{part}.weight", family)), module)
    zeros: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in module_of.keys() & set(tensors.keys()):
                module = module_of[name]
                zeros[module] = zeros.get(module, 0) + int((tensors.get_tensor(name) == 0).sum())
    return zeros


def write_weights(model: nn.Module, folder: Path, *, plain: bool = False) -> None:
    """Write a model's weights as safetensors, tied weights once.

    Args:
        model: model whose weights are written.
        folder: destination of the files.
        plain: use the names under which the family's models are published, also where experts are unfused.

    Raises:
        OSError: the weights do not fit on the disk.
    """
    with require_extra("hf"):
        from huggingface_hub import save_torch_state_dict
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    check_space(folder, size)
    tied = list(getattr(model, "_tied_weights_keys", None) or [])
    state = model.state_dict()
    if plain:
        family = find_groups(model).family
        state = {plain_name(name, family): tensor for name, tensor in state.items()}
    save_torch_state_dict(state, folder, shared_tensors_to_discard=tied)


def share(folder: Path) -> None:
    """Give the files the permissions that any other new file gets; temporary ones are private to their owner."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)


@contextmanager
def complete_or_nothing(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` if the block succeeds and is removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    old = folder.with_name(f"{folder.name}-old")
    try:
        yield folder
        if path.exists():
            path.rename(old)
        try:
            folder.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _checked_names(files: Mapping[str, str], taken: Mapping[str, str]) -> Mapping[str, str]:
    for name in files:
        if name in taken or Path(name).name != name:
            raise ValueError(f"extra_files: {name!r} is taken or no plain file name")
    return files
