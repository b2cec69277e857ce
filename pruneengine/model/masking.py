"""Changes to a model within a ``with`` block: units gated, layers skipped, weights masked or given back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.model import Member, Structure, get_linear
from pruneengine.model.edit import set_weight


@contextlib.contextmanager
def skip(model: nn.Module, structure: Structure, layers: Iterable[int]) -> Iterator[nn.Module]:
    """Within the context these decoder layers pass their input on."""
    forward = _identity_in_tuple if structure.family.layer_gives_tuple else _identity
    with contextlib.ExitStack() as undo:
        for layer in layers:
            undo.enter_context(stand_in(model.get_submodule(structure.layer_path(layer)), forward))
        yield model


@contextlib.contextmanager
def gate(
    model: nn.Module,
    structure: Structure,
    gates: Mapping[str, Tensor],
    *,
    means: Mapping[str, Tensor] | None = None,
) -> Iterator[nn.Module]:
    """Within the context every unit's output x is replaced by ``x * gate + mean * (1 - gate)``.

    Gradients reach the gates.

    Args:
        model: whose o_proj and down_proj are hooked.
        structure: of the model.
        gates: ``[units]`` per group name; 1 changes nothing, 0 is what :func:`mask` does to a removed unit. Or
            ``[rows, units]``, with gates of its own for every row of the batch.
        means: ``[units * width]`` or ``[rows, units * width]`` per group name; zero where absent.
    """
    with contextlib.ExitStack() as undo:
        for name, values in gates.items():
            out = structure.by_name[name].members[-1]
            linear = get_linear(model, out.module)
            hook = _gate_hook(linear, out, values, (means or {}).get(name))
            undo.enter_context(linear.register_forward_pre_hook(hook))
        yield model


@contextlib.contextmanager
def masked_weights(model: nn.Module, codes: Mapping[str, Tensor], level: int, buffer: Tensor) -> Iterator[nn.Module]:
    """Within the context these linears compute with the weights whose code is below ``level`` at zero.

    The masked weights stand one behind the other in the buffer; the model's own are neither written nor copied, and
    are back afterwards, also after an error. One context at a time may use a buffer.

    Args:
        model: whose linears are lent other weights.
        codes: of :func:`pruneengine.ops.quantile_codes`, uint8 ``[out, in]`` by module path.
        level: 0 to 256, in 256ths of a matrix's weights.
        buffer: ``[N]`` of the weights' dtype and device, N at least the number of weights.

    Raises:
        ValueError: a buffer that is too small, codes of another shape, or a level out of range.
    """
    linears = [(get_linear(model, path), of) for path, of in codes.items()]
    if buffer.numel() < (needed := sum(linear.weight.numel() for linear, _ in linears)):
        raise ValueError(f"the buffer holds {buffer.numel()} weights, expected at least {needed}")
    own = [linear.weight for linear, _ in linears]
    start = 0
    try:
        for linear, of in linears:
            weight = linear.weight.detach()
            room = buffer[start : start + weight.numel()].view(weight.shape)
            start += weight.numel()
            # No gradient asked for: autocast would keep its cast of a weight that asks for one.
            lent = nn.Parameter(ops.masked_copy(weight, of, level, room), requires_grad=False)
            linear.weight = lent
        yield model
    finally:
        for (linear, _), weight in zip(linears, own, strict=True):
            linear.weight = weight


def _identity(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def _identity_in_tuple(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, None]:
    return hidden_states, None


@contextlib.contextmanager
def stand_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context a module computes ``forward`` and nothing of its own."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _as_tensor(units: tuple[int, ...]) -> Tensor:
    """int64 ``[K]``; torch.tensor looks at every element of a tuple several times."""
    return torch.from_numpy(np.fromiter(units, np.int64, len(units)))


def kept_mask(units: int, kept: tuple[int, ...]) -> Tensor:
    """1 for the units that stay, else 0: float32 ``[units]``."""
    return torch.zeros(units).index_fill_(0, _as_tensor(kept), 1)


def _gate_hook(linear: nn.Linear, out: Member, gates: Tensor, means: Tensor | None):
    factors = gates.to(linear.weight).repeat_interleave(out.width, -1)
    if means is None:
        return lambda _module, args: (args[0] * _per_row(factors, args[0]), *args[1:])
    constant = means.to(linear.weight) * (1 - factors)
    return lambda _module, args: (args[0] * _per_row(factors, args[0]) + _per_row(constant, args[0]), *args[1:])


def _per_row(values: Tensor, x: Tensor) -> Tensor:
    """``[rows, C]`` to go with activations ``[rows, tokens, C]``, or ``[rows * tokens, C]`` as some models run them."""
    if values.dim() == 1:
        return values
    return values[:, None] if x.dim() == 3 else values.repeat_interleave(len(x) // len(values), 0)


def keep_weights(model: nn.Module, paths: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the weights of linears, by module path; in main memory wherever the model is."""
    return {path: get_linear(model, path).weight.detach().to("cpu", copy=True) for path in paths}


@contextlib.contextmanager
def restored_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Within the context the model may be pruned; afterwards, also after an error, it has every bit of these weights.

    Args:
        model: whose linears are written in place.
        weights: of :func:`keep_weights`, of all linears that may be pruned.
    """
    try:
        yield model
    finally:
        for path, weight in weights.items():
            set_weight(get_linear(model, path), weight)
