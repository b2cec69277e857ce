"""Weights of a checkpoint against the model that its config describes: none missing, none left over, none cast."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.common.optional_imports import require_extra
from pruneengine.model.checks import quantisation_of

# Stored dtypes of a safetensors header that a floating-point parameter takes without a loss of meaning.
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
# Buffers of whole numbers that some models store beside their weights.
BUFFERS = ("position_ids", "masked_bias", "attn.bias", "attention.bias", "num_batches_tracked")
SHOWN = 3


def check_loading_info(info: Mapping[str, Any], source: str) -> None:
    """Raise ValueError unless the checkpoint held every weight of the model and nothing else.

    Args:
        info: what ``from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`` gives beside the
            model. transformers fills missing and mismatched weights at random and drops unexpected ones.
        source: name of the model, for the message.

    Raises:
        ValueError: the kinds of fault, with their number and the first names.
    """
    faults = []
    if missing := info.get("missing_keys"):
        faults.append(f"{_counted(missing)} missing, which would be random")
    if unexpected := info.get("unexpected_keys"):
        faults.append(f"{_counted(unexpected)} that the config has no place for")
    if mismatched := info.get("mismatched_keys"):
        shapes = {name: f"{name} {list(stored)} for {list(expected)}" for name, stored, expected in mismatched}
        faults.append(f"{_counted(shapes.values())} of another shape, which would be random")
    if errors := info.get("error_msgs"):
        faults.append(str(errors[0] if isinstance(errors, (list, tuple)) else errors))
    if faults:
        raise InputError(f"the weights of {source} are not those of its config: {'; '.join(faults)}")


def stored_dtypes(folder: Path) -> dict[str, str]:
    """Return the dtype of every tensor that transformers reads from a model folder, as the safetensors headers name it.

    Other files beside them, such as a model in its authors' own layout, are not looked at.
    """
    with require_extra("hf"):
        from safetensors import safe_open
    dtypes: dict[str, str] = {}
    for file in _weight_files(folder):
        with safe_open(file, "pt") as tensors:
            dtypes |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return dtypes


def _weight_files(folder: Path) -> list[Path]:
    """Return the one file of the weights, or those that their index names; all where neither is there."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    return sorted(folder.glob("*.safetensors"))


def check_floating(stored: Mapping[str, str], source: str) -> None:
    """Raise ValueError where weights are stored in something else than floating point.

    transformers casts such tensors to the model's dtype without a word, even if they are codes of a quantisation.

    Args:
        stored: dtype by name, of :func:`stored_dtypes`.
        source: name of the model, for the message.

    Raises:
        ValueError: the number of such tensors, the first names, and their dtypes.
    """
    odd = [f"{name} {dtype}" for name, dtype in stored.items() if dtype not in FLOATING and not name.endswith(BUFFERS)]
    if odd:
        raise InputError(
            f"{source} holds {_counted(odd)} not in floating point: save the model in full precision first"
        )


def check_full_precision(config: Any, source: str) -> None:
    """Raise ValueError where a config says that the weights are quantised."""
    if (method := quantisation_of(config)) is not None:
        raise InputError(f"{source} is quantised ({method}): load it in full precision to prune it")


def _counted(names: Collection[str]) -> str:
    first = sorted(names)[:SHOWN]
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(first)}{more})"
