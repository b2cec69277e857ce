"""How an op becomes ``torch.ops.pruneengine.<name>`` and yet costs an eager caller nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pruneengine.ops import backends


def register(
    name: str, schema: str, check: Callable, fake: Callable, check_values: Callable = lambda *arguments: None
) -> Callable:
    """The op ``pruneengine::name``: shapes are checked for fake tensors too, values only for real ones.

    What comes back is called like the op, detaches its tensors, and leaves out the dispatcher, 40 microseconds a call,
    where nobody listens.
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
    """What a fake op returns for a float32 result."""
    return like.new_empty(shape, dtype=torch.float32)


def _detached(argument: object) -> object:
    if isinstance(argument, Tensor):
        return argument.detach()
    return [_detached(part) for part in argument] if isinstance(argument, (list, tuple)) else argument


def _is_plain(tensor: Tensor) -> bool:
    """A real tensor in eager mode: no compiler, tracer, fake or subclass that has to see the op as one call."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type != "meta"
        and _get_current_dispatch_mode() is None
    )
