"""Export of a checkpoint: opened, written in another format, and verified before the result appears."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruneengine.checkpoint.equivalent_class import model_to_save, split_fused_linears
from pruneengine.checkpoint.load import load_model, load_skeleton
from pruneengine.checkpoint.output_folder import claim_output, finished_folder
from pruneengine.checkpoint.reload_proof import fixed_tokens
from pruneengine.checkpoint.write import share
from pruneengine.common.errors import InputError
from pruneengine.common.validation import require_choice
from pruneengine.export import deci, pad
from pruneengine.export.compare_logits import agree, logits
from pruneengine.export.gguf import file as gguf_file
from pruneengine.export.model_shape import ModelShape, model_shape
from pruneengine.export.outcome import EXPORT_FILE, Exported, Written, describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# format: (writer; check that raises ValueError for a shape it cannot hold; model or equivalent that is written)
FORMATS: dict[str, tuple[Callable[..., Written], Callable[[ModelShape], Any], Callable[[nn.Module], nn.Module]]] = {
    "gguf": (gguf_file.write, gguf_file.check, split_fused_linears),
    "deci": (deci.write, deci.check, split_fused_linears),
    "pad": (pad.write, pad.check, model_to_save),
}
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def export(
    source: str | Path,
    out: str | Path,
    format: str = "gguf",
    *,
    dtype: str = "float16",
    overwrite: bool = False,
    proof: bool = True,
    trust_remote_code: bool = False,
) -> Exported:
    """Write a checkpoint in another format, into a folder that appears complete or not at all.

    Args:
        source: a model folder, or whatever else :func:`pruneengine.checkpoint.load.load_model` takes.
        out: the folder to create.
        format: "gguf" (llama.cpp), "deci" (vLLM's DeciLM) or "pad" (zeros up to the widest layer).
        dtype: dtype of the matrices of a GGUF file, "float16" or "float32"; the other formats keep the checkpoint's.
        overwrite: replace an earlier export.
        proof: read the result back and compare it with the checkpoint before it appears.
        trust_remote_code: run modelling code that comes with the model.

    Raises:
        ValueError: an unknown format or dtype; the format cannot hold this model, with the reason; ``out`` is or holds
            the checkpoint itself, or is a GGUF file's name.
        FileExistsError, PermissionError: as :func:`claim_output` and :func:`finished_folder`.
        OSError: not enough space.
        ReloadError: the result gives other logits than the checkpoint; nothing was written.
    """
    require_choice("format", format, FORMATS)
    require_choice("dtype", dtype, DTYPES)
    if Path(out).suffix == ".gguf":
        raise InputError(f"output {out} must be a folder; the .gguf file is written into it")
    local = [source] if Path(source).expanduser().exists() else []
    output = claim_output(out, overwrite, mark=EXPORT_FILE, inputs=local)
    path = output.path
    write, check, equivalent_of = FORMATS[format]
    shape = model_shape(load_skeleton(source, trust_remote_code))
    check(shape)
    model, tokenizer = load_model(source, dtype=_stored_dtype(source), trust_remote_code=trust_remote_code)
    equivalent = equivalent_of(model)
    shape = model_shape(equivalent)
    same = [_same(equivalent, model, shape)] if proof and equivalent is not model else []
    with finished_folder(output) as folder:
        written = write(equivalent, tokenizer, shape, folder, name=path.name, dtype=DTYPES[dtype], proof=proof)
        written = replace(written, verified=(*same, *written.verified))
        describe(folder, format, _name(source), path.name, written)
        share(folder)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Exported(path, format, size, written)


def _name(source: str | Path) -> str:
    """Return a folder's own name, also for "."; a hub name unchanged."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else str(source)


def _same(equivalent: PreTrainedModel, model: nn.Module, shape: ModelShape) -> str:
    tokens = fixed_tokens(equivalent.config.vocab_size, shape.window)
    what = f"as a {equivalent.config.model_type}, shared linears split"
    return agree(what, logits(equivalent, tokens), logits(model, tokens))


def _stored_dtype(source: str | Path) -> torch.dtype:
    config = Path(source).expanduser() / "config.json"
    if not config.is_file():
        return torch.float32
    values = json.loads(config.read_text(encoding="utf-8"))
    stored = getattr(torch, str(values.get("dtype") or values.get("torch_dtype") or "float32"), None)
    return stored if stored in (torch.float16, torch.bfloat16) else torch.float32
