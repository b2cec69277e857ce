"""Changes of a model that end with a ``with`` block: units gated, layers skipped, weights lent or given back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.common.errors import InputError
from pruneengine.model import Member, Structure, get_linear
from pruneengine.model.edit import set_weight
from pruneengine.model.structure import index_tensor


@contextlib.contextmanager
def stand_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute ``forward`` within the context, and nothing of its own."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextlib.contextmanager
def skip(model: nn.Module, structure: Structure, layers: Iterable[int]) -> Iterator[nn.Module]:
    """Let the given decoder layers pass their input on within the context."""
    forward = _identity_in_tuple if structure.family.layer_gives_tuple else _identity
    with contextlib.ExitStack() as undo:
        for layer in layers:
            undo.enter_context(stand_in(model.get_submodule(structure.layer_path(layer)), forward))
        yield model


def _identity(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def _identity_in_tuple(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, None]:
    return hidden_states, None


@contextlib.contextmanager
def gate(
    model: nn.Module,
    structure: Structure,
    gates: Mapping[str, Tensor],
    *,
    means: Mapping[str, Tensor] | None = None,
) -> Iterator[nn.Module]:
    """Replace every unit's output x by ``x * gate + mean * (1 - gate)`` within the context.

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


def kept_mask(units: int, kept: tuple[int, ...]) -> Tensor:
    """Return gates float32 ``[units]``: 1 for the units that stay, else 0."""
    return torch.zeros(units).index_fill_(0, index_tensor(kept), 1)


def _gate_hook(
    linear: nn.Linear, out: Member, gates: Tensor, means: Tensor | None
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    factors = gates.to(linear.weight).repeat_interleave(out.width, -1)
    if means is None:
        return lambda _module, args: (args[0] * _per_row(factors, args[0]), *args[1:])
    constant = means.to(linear.weight) * (1 - factors)
    return lambda _module, args: (args[0] * _per_row(factors, args[0]) + _per_row(constant, args[0]), *args[1:])


def _per_row(values: Tensor, x: Tensor) -> Tensor:
    """Return values ``[rows, C]`` in the shape of activations ``[rows, tokens, C]``.

    Some models run activations as ``[rows * tokens, C]``.
    """
    if values.dim() == 1:
        return values
    return values[:, None] if x.dim() == 3 else values.repeat_interleave(len(x) // len(values), 0)


@contextlib.contextmanager
def choose_among(router: nn.Module, experts: Sequence[int]) -> Iterator[None]:
    """Let a router send tokens to the given experts (ascending indices) alone within the context."""
    weight: Tensor = router.get_parameter("weight")
    index = torch.tensor(experts, device=weight.device)
    with (
        lent(router, {"weight": weight.detach()[index]}),
        router.register_forward_hook(lambda _module, _args, out: (*out[:-1], index[out[-1]])),
    ):
        yield


@contextlib.contextmanager
def lent(module: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module compute with other parameters, by name, within the context.

    Args:
        module: with a weight; gets a bias for the time if it has none and one is given.
        parameters: values of any shape, which ask for gradients where the module's own (or else its weight) do.
    """
    own = {name: getattr(module, name) for name in parameters}
    for name, values in parameters.items():
        like = module.get_parameter("weight") if own[name] is None else own[name]
        setattr(module, name, nn.Parameter(values, requires_grad=like.requires_grad))
    try:
        yield
    finally:
        for name, parameter in own.items():
            setattr(module, name, parameter)


@contextlib.contextmanager
def masked_weights(model: nn.Module, codes: Mapping[str, Tensor], level: int, buffer: Tensor) -> Iterator[nn.Module]:
    """Let linears compute with the weights whose code is below ``level`` at zero within the context.

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
    linears = [(get_linear(model, path), matrix) for path, matrix in codes.items()]
    if buffer.numel() < (needed := sum(linear.weight.numel() for linear, _ in linears)):
        raise InputError(f"the buffer holds {buffer.numel()} weights, expected at least {needed}")
    own = [linear.weight for linear, _ in linears]
    start = 0
    try:
        for linear, matrix in linears:
            weight = linear.weight.detach()
            room = buffer[start : start + weight.numel()].view(weight.shape)
            start += weight.numel()
            # No gradient asked for: autocast would keep its cast of a weight that asks for one.
            linear.weight = nn.Parameter(ops.masked_copy(weight, matrix, level, room), requires_grad=False)
        yield model
    finally:
        for (linear, _), parameter in zip(linears, own, strict=True):
            linear.weight = parameter


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Let modules compute with float32 copies of their own weights, which live as long as the call of the module."""
    own: dict[nn.Module, dict[str, nn.Parameter]] = {}

    def widen(module: nn.Module, _arguments: Any) -> None:
        own[module] = _half(module)
        for name, parameter in own[module].items():
            setattr(module, name, nn.Parameter(parameter.float(), requires_grad=False))

    def restore(module: nn.Module, *_call: Any) -> None:
        for name, parameter in own.pop(module, {}).items():
            setattr(module, name, parameter)

    with contextlib.ExitStack() as hooks:
        for module in filter(_half, model.modules()):
            hooks.enter_context(module.register_forward_pre_hook(widen))
            hooks.enter_context(module.register_forward_hook(restore, always_call=True))
        yield


def _half(module: nn.Module) -> dict[str, nn.Parameter]:
    parameters = module.named_parameters(recurse=False)
    return {name: parameter for name, parameter in parameters if parameter.dtype in (torch.float16, torch.bfloat16)}


def keep_weights(model: nn.Module, paths: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the weights of linears, by module path; in main memory wherever the model is."""
    return {path: get_linear(model, path).weight.detach().to("cpu", copy=True) for path in paths}


@contextlib.contextmanager
def restored_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Let the model be pruned within the context; afterwards, also after an error, give back every bit of its weights.

    Args:
        model: whose linears are written in place.
        weights: of :func:`keep_weights`, of all linears that may be pruned.
    """
    try:
        yield model
    finally:
        for path, weight in weights.items():
            set_weight(get_linear(model, path), weight)
