"""Checks of a model before any work: whether it can be pruned as it stands, and how long a window it can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.model.families import learned_positions
from pruneengine.model.structure import text_config

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Wrappers by defining module and name, so that none needs to be imported; and what to pass in place of one.
WRAPPERS = {
    ("torch.nn.parallel", "DistributedDataParallel"): "model.module",
    ("torch.nn.parallel", "DataParallel"): "model.module",
    ("torch.distributed.fsdp", "FullyShardedDataParallel"): "the model before it was wrapped",
    ("torch._dynamo", "OptimizedModule"): "model._orig_mod",
    ("deepspeed", "DeepSpeedEngine"): "model.module",
}


def check_prunable(model: nn.Module, *, weights: bool = True) -> None:
    """Raise ValueError unless every weight of a model can be read, scored and cut as it stands.

    Args:
        model: as it was given.
        weights: require weights in memory; False admits a model on the meta device, of which only shapes are read.

    Raises:
        ValueError: the model is wrapped, carries adapters, is quantised, or has weights that are sharded, offloaded or
            not in floating point. The message names the first such place and the way out.
    """
    _refuse_wrapper(model)
    _refuse_adapters(model)
    _refuse_quantised(model)
    for name, parameter in model.named_parameters():
        _refuse_parameter(name, parameter, weights)


def check_positions(config: Any, windows: Mapping[str, int]) -> tuple[str, ...]:
    """Return warnings of windows longer than those that a model was trained on.

    Args:
        config: of a model of transformers; None has no limit.
        windows: tokens per window, by a name for the message.

    Raises:
        ValueError: a window longer than the model's learned positions, which it cannot read.
    """
    text = text_config(config)
    learned = learned_positions(getattr(text, "model_type", None))
    limit = getattr(text, learned or "max_position_embeddings", None)
    # Slopes of attention by distance have no limit, although the config may name one.
    if not isinstance(limit, int) or getattr(text, "alibi", False):
        return ()
    longer = {name: length for name, length in windows.items() if length > limit}
    if longer and learned:
        name, length = next(iter(longer.items()))
        raise InputError(
            f"{name} of {length} tokens: the model has {limit} positions ({learned}), choose at most these"
        )
    return tuple(
        f"{name} of {length} tokens: the model was trained on at most {limit} (max_position_embeddings), beyond which "
        "its loss may be far higher"
        for name, length in longer.items()
    )


def quantisation_of(config: object) -> str | None:
    """Return the quantisation method that a config names, or None.

    Args:
        config: of transformers, or the content of a ``config.json``.
    """
    stored = (config if isinstance(config, dict) else vars(config)).get("quantization_config")
    if not stored:
        return None
    values = stored if isinstance(stored, dict) else vars(stored)
    method = values.get("quant_method") or values.get("_target_") or type(stored).__name__
    return str(getattr(method, "value", method))


def _refuse_wrapper(model: nn.Module) -> None:
    for path, part in model.named_modules():
        for kind in type(part).__mro__:
            for (module, name), inner in WRAPPERS.items():
                if kind.__name__ == name and kind.__module__.startswith(module):
                    if path:
                        raise InputError(f"{path} is wrapped by {name}: pass the model before it was wrapped")
                    raise InputError(f"the model is wrapped by {name}: pass {inner}")


def _refuse_adapters(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if type(module).__module__.startswith("peft.") or hasattr(module, "lora_A"):
            where = f" at {path}" if path else ""
            raise InputError(f"the model carries adapters ({type(module).__name__}{where}): merge them first")


def _refuse_quantised(model: nn.Module) -> None:
    method = quantisation_of(getattr(model, "config", {}))
    # transformers dequantises GGUF files as it reads them, and leaves the entry in the config.
    if method not in (None, "gguf"):
        raise InputError(f"the model is quantised ({method}): load it in full precision to prune it")


def _refuse_parameter(name: str, parameter: Tensor, weights: bool) -> None:
    kind = type(parameter.data if type(parameter) is nn.Parameter else parameter)
    if kind is not Tensor:
        raise InputError(
            f"{name} is a {kind.__name__}, expected a plain tensor: gather sharded weights, and load quantised ones in "
            "full precision"
        )
    if weights and parameter.is_meta:
        raise InputError(f"{name} is on the meta device, offloaded or never loaded: load the model into memory")
    if parameter.dtype not in FLOATS:
        raise InputError(f"{name} has dtype {parameter.dtype}: load the model in float32, bfloat16 or float16")
