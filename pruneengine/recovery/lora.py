"""Adapters on a model's linears, and back into its weights: peft, on the linears that the structure names."""

from __future__ import annotations

import contextlib
import difflib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from pruneengine.common.optional_imports import require_extra
from pruneengine.model import Structure, find_groups
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.dropout import SixteenBitDropout


def find_targets(structure: Structure, targets: Sequence[str] | None = None) -> list[str]:
    """Paths of the linears that get an adapter.

    Args:
        structure: of the model, whatever its layers' widths.
        targets: ends of paths ("q_proj", "mlp.down_proj", a whole path) or ``re:`` patterns that match a whole path;
            None for every linear of every group.

    Raises:
        ValueError: a target that matches nothing, with the nearest names.
    """
    paths = list(dict.fromkeys(member.module for group in structure.groups for member in group.members))
    if targets is None:
        return paths
    chosen: set[str] = set()
    for target in targets:
        found = [path for path in paths if _matches(path, target)]
        if not found:
            names = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths))
            near = difflib.get_close_matches(target, names, n=3, cutoff=0.5) or names
            raise ValueError(f"LoRA target {target!r} matches no linear of the model; near names: {', '.join(near)}")
        chosen.update(found)
    return [path for path in paths if path in chosen]


def attach(model: nn.Module, config: RecoverConfig) -> Any:
    """The model as ``peft.PeftModel``: adapters are put into it in place, and they alone ask for gradients.

    B starts at zero, so the function of the model is unchanged.

    Raises:
        ValueError: as :func:`find_targets`, or the model carries adapters already.
        ImportError: the extra ``recover`` is not installed.
    """
    with require_extra("recover"):
        from peft import LoraConfig, get_peft_model
    if hasattr(model, "peft_config"):
        raise ValueError(f"{type(model).__name__} carries adapters already; merge or unload them first")
    structure = find_groups(model)
    lora = LoraConfig(
        r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, bias="none",
        target_modules=find_targets(structure, config.targets), task_type="CAUSAL_LM",
    )  # fmt: skip
    with _ordinary(model, structure), warnings.catch_warnings():
        # peft asks transformers by a name that is about to go.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(model, lora)
    if config.lora_dropout and next(model.parameters()).device.type == "cpu":
        for module in wrapped.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"] = SixteenBitDropout(config.lora_dropout)
    # With a name peft asks the hub for the base model's config whenever it saves.
    wrapped.peft_config["default"].base_model_name_or_path = None
    return wrapped


def detach(wrapped: Any, merge: bool) -> nn.Module:
    """The model without adapters, the same object that :func:`attach` was given; with ``merge`` W becomes W + BA.

    The base model's ``requires_grad`` is left off everywhere, as peft set it.

    Raises:
        FloatingPointError: a merged weight would not be finite; the model is as it was before :func:`attach`.
    """
    try:
        return wrapped.merge_and_unload(safe_merge=True) if merge else wrapped.unload()
    except ValueError as error:
        for module in wrapped.modules():
            if getattr(module, "merged_adapters", None):
                module.unmerge()
        wrapped.unload()
        raise FloatingPointError(f"the adapters cannot be merged: {error}") from None


@contextlib.contextmanager
def _ordinary(model: nn.Module, structure: Structure) -> Iterator[None]:
    """Within the context peft does not know a mixture of experts by its type, and takes the targets as they are.

    It would send those of experts to the fused parameters, which unfused ones have not.
    """
    if structure.family.experts is None:
        yield
        return
    model.config.model_type = "unfused"
    try:
        yield
    finally:
        del model.config.model_type


def _matches(path: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.fullmatch(target.removeprefix("re:"), path) is not None
    return path == target or path.endswith(f".{target}")
