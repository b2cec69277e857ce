"""Writer of checkpoints: the folder appears complete or not at all, and is proved in a fresh process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from pruneengine.checkpoint.config_json import MODELING_FILE, checkpoint_config, loader_of
from pruneengine.checkpoint.equivalent_class import model_to_save
from pruneengine.checkpoint.model_card import model_card
from pruneengine.checkpoint.output_folder import OutputFolder, claim_output, finished_folder
from pruneengine.checkpoint.reload_proof import ProofStoppedError, ReloadProof, prove_reload
from pruneengine.common.errors import InputError
from pruneengine.common.files import check_space
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
        proof: measurements of the reload proof, or None if it was not requested or was stopped.
        unproved: why the proof came to no end (its process was killed, or had no memory); None otherwise.
    """

    path: Path
    bytes: int
    loads_with: str
    proof: ReloadProof | None
    unproved: str | None = None


def save(
    model: PreTrainedModel,
    tokenizer: Any,
    out: str | Path | OutputFolder,
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
        out: the folder to create, or what :func:`claim_output` gave for it before the work.
        plan: written as ``plan.json``.
        recipe: written as ``recipe.yaml``; a string is written unchanged.
        report: JSON value, written as ``report.json`` and shown in the model card.
        overwrite: replace an earlier checkpoint of ours.
        dense_config: config of the unpruned model (a dict or with ``to_dict()``), for the model card.
        proof: reopen the checkpoint in a fresh process before it appears.
        extra_files: file name -> text.
        remarks: a heading and paragraphs, for the model card.

    Raises:
        FileExistsError, PermissionError: as :func:`claim_output` and :func:`finished_folder`.
        ValueError: the model cannot be written, see :func:`checkpoint_config`.
        OSError: not enough space for the weights.
        ReloadError: the reload proof failed; nothing was written.
    """
    output = out if isinstance(out, OutputFolder) else claim_output(out, overwrite, extra_files=extra_files or ())
    path = output.path
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
    with finished_folder(output) as folder:
        write_weights(written, folder, plain="auto_map" not in config)
        if getattr(model, "generation_config", None) is not None:
            # Not save_pretrained: it refuses sampling settings that many published models carry.
            model.generation_config.to_json_file(folder / "generation_config.json")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        share(folder)
        result, unproved = None, None
        if proof:
            try:
                result = prove_reload(folder, model, tokenizer)
            except ProofStoppedError as error:
                unproved = str(error)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return SavedCheckpoint(path, size, loader, result, unproved)


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
        OSError: the weights do not fit on the disk, or cannot be written to it.
    """
    with require_extra("hf"):
        from huggingface_hub import save_torch_state_dict
        from safetensors import SafetensorError
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    check_space(folder, size)
    tied = list(getattr(model, "_tied_weights_keys", None) or [])
    state = model.state_dict()
    if plain:
        family = find_groups(model).family
        state = {plain_name(name, family): tensor for name, tensor in state.items()}
    try:
        save_torch_state_dict(state, folder, shared_tensors_to_discard=tied)
    except SafetensorError as error:
        # Its own type of error also for what the system refuses, such as a disk that fills up meanwhile.
        raise OSError(f"the weights cannot be written to {folder.parent}: {error}") from error


def share(folder: Path) -> None:
    """Give the files the permissions that any other new file gets; temporary ones are private to their owner."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _checked_names(files: Mapping[str, str], taken: Mapping[str, str]) -> Mapping[str, str]:
    for name in files:
        if name in taken or Path(name).name != name:
            raise InputError(f"extra_files: {name!r} is taken or no plain file name")
    return files
