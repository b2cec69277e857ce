"""LoRA adapters of peft, attached to the linears of a model's structure and merged back into their weights."""

from __future__ import annotations

import contextlib
import difflib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruneengine.common.errors import InputError, NotFiniteError
from pruneengine.common.optional_imports import require_extra
from pruneengine.model import Structure, find_groups, text_config
from pruneengine.recovery.config import RecoverConfig
from pruneengine.recovery.dropout import SixteenBitDropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_targets(structure: Structure, targets: Sequence[str] | None = None) -> list[str]:
    """Return the paths of the linears that get an adapter.

    Args:
        structure: structure of the model, of any widths.
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
        matches = [path for path in paths if _matches(path, target)]
        if not matches:
            names = list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths))
            near = difflib.get_close_matches(target, names, n=3, cutoff=0.5) or names
            raise InputError(f"LoRA target {target!r} matches no linear of the model; near names: {', '.join(near)}")
        chosen.update(matches)
    return [path for path in paths if path in chosen]


class Adapters:
    """Adapters of a model until they are merged or removed, both by :meth:`settle`."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped, self._attached = wrapped, True

    def settle(self, merge: bool) -> None:
        """Merge the adapters into the weights, or remove them; do nothing the second time."""
        if self._attached:
            self._attached = False
            detach(self.wrapped, merge)


@contextlib.contextmanager
def adapted(model: PreTrainedModel, config: RecoverConfig) -> Iterator[Adapters]:
    """Attach adapters for the time of the block; afterwards they, and all traces of training, are gone."""
    required = [(p, p.requires_grad) for p in model.parameters()]
    caching, hooks = _caching(model), _embedding_hooks(model)
    earlier = set(hooks)
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        adapters = Adapters(attach(model, config))
        try:
            yield adapters
        finally:
            adapters.settle(merge=False)
            if config.gradient_checkpointing:
                model.gradient_checkpointing_disable()
                model.disable_input_require_grads()
            # Both are switched by Trainer, by peft or by gradient checkpointing, depending on their versions.
            for hook in set(hooks) - earlier:
                del hooks[hook]
            for holder, flag in caching:
                holder.use_cache = flag
            for parameter, flag in required:
                parameter.requires_grad_(flag)
                parameter.grad = None
            model.eval()


def _caching(model: PreTrainedModel) -> list[tuple[Any, bool]]:
    """Return the configs of a model that say whether it keeps keys and values, with what they say."""
    configs: tuple[Any, ...] = (model.config, text_config(model.config), getattr(model, "generation_config", None))
    return [(config, config.use_cache) for config in configs if hasattr(config, "use_cache")]


def _embedding_hooks(model: PreTrainedModel) -> dict[int, Any]:
    """Return the forward hooks of the token embeddings, as the module holds them."""
    return model.get_input_embeddings()._forward_hooks


def attach(model: PreTrainedModel, config: RecoverConfig) -> Any:
    """Put adapters into the model, in place, and return it as ``peft.PeftModel``.

    Only the adapters require gradients. B starts at zero, so the function of the model is unchanged.

    Raises:
        ValueError: as :func:`find_targets`, or the model carries adapters already.
        ImportError: the extra ``recover`` is not installed.
    """
    with require_extra("recover"):
        from peft import LoraConfig, get_peft_model
    if hasattr(model, "peft_config"):
        raise InputError(f"{type(model).__name__} carries adapters already; merge or unload them first")
    structure = find_groups(model)
    lora = LoraConfig(
        r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, bias="none",
        target_modules=find_targets(structure, config.targets), task_type="CAUSAL_LM",
    )  # fmt: skip
    with _ordinary(model, structure), warnings.catch_warnings():
        # peft uses a deprecated name of transformers.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(model, lora)
    if config.lora_dropout and next(model.parameters()).device.type == "cpu":
        for module in wrapped.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"] = SixteenBitDropout(config.lora_dropout)
    # If the base model has a name, peft asks the hub for its config on every save.
    wrapped.peft_config["default"].base_model_name_or_path = None
    return wrapped


def detach(wrapped: Any, merge: bool) -> nn.Module:
    """Remove the adapters and return the model that :func:`attach` was given; with ``merge`` W becomes W + BA.

    ``requires_grad`` of the base model stays off everywhere, as peft set it.

    Raises:
        FloatingPointError: a merged weight would not be finite; the model is as before :func:`attach`.
    """
    try:
        return wrapped.merge_and_unload(safe_merge=True) if merge else wrapped.unload()
    except ValueError as error:
        for module in wrapped.modules():
            if getattr(module, "merged_adapters", None):
                module.unmerge()
        wrapped.unload()
        raise NotFiniteError(f"the adapters cannot be merged: {error}") from None


@contextlib.contextmanager
def _ordinary(model: PreTrainedModel, structure: Structure) -> Iterator[None]:
    """Hide the type of a mixture of experts from peft within the context, so that it takes the targets unchanged.

    By the type, peft would send targets of experts to the fused parameters, which unfused experts do not have.
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
