"""Registration of the ops as ``torch.ops.pruneengine.<name>``, without its cost for eager callers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pruneengine.ops import backends


def register(
    name: str,
    schema: str,
    check: Callable[..., None],
    fake: Callable[..., object],
    check_values: Callable[..., None] = lambda *arguments: None,
) -> Callable[..., Any]:
    """Register the op ``pruneengine::name`` and return a function that calls it.

    The function detaches its tensors, and skips the dispatcher (40 microseconds per call) where no compiler, tracer or
    tensor subclass has to see the op.

    Args:
        name: of the op, and of the function in every backend.
        schema: of torch.library.
        check: raises an error for bad arguments; called for fake tensors too.
        fake: returns empty results of the right shapes.
        check_values: raises an error for bad values; called for real tensors only.
    """

    def op(*arguments: object) -> object:
        check(*arguments)
        check_values(*arguments)
        return backends.run(name, *arguments)

    def fake_op(*arguments: object) -> object:
        check(*arguments)
        return fake(*arguments)

    mutated = re.findall(r"Tensor\(\w!\) (\w+)", schema)
    registered = torch.library.custom_op(f"pruneengine::{name}", op, mutates_args=mutated, schema=schema)
    registered.register_fake(fake_op)

    def call(*arguments: object) -> object:
        arguments = tuple(map(_detached, arguments))
        tensor = backends.first_tensor(arguments)
        return op(*arguments) if tensor is None or _is_plain(tensor) else registered(*arguments)

    return call


def floats(like: Tensor, *shape: int) -> Tensor:
    """Return an empty float32 result of a fake op."""
    return like.new_empty(shape, dtype=torch.float32)


def _detached(argument: object) -> object:
    if isinstance(argument, Tensor):
        return argument.detach()
    return [_detached(part) for part in argument] if isinstance(argument, (list, tuple)) else argument


def _is_plain(tensor: Tensor) -> bool:
    """Return True for a real tensor in eager mode: no compiler, tracer, fake or subclass has to see the op."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type != "meta"
        and _get_current_dispatch_mode() is None
    )
