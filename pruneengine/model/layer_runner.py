"""Layer-by-layer runner: single decoder layers on stored hidden states.

A layer's other arguments (attention masks, rotary embeddings) are asked of the model once per layer and batch size, by
a forward pass whose layers do nothing. From there on layers are run by hand, as often and in as many variants as a
method needs, and the memory is one hidden state per token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.model import Structure
from pruneengine.model.decoder import hidden_states
from pruneengine.model.masking import skip


class LayerRunner:
    """The decoder layers of a model, each of which can be run on given hidden states.

    Attributes:
        inputs: hidden states in front of the first layer, ``[b, T, H]`` per batch, on the model's device.
    """

    def __init__(self, model: nn.Module, structure: Structure, batches: Iterable[Tensor]) -> None:
        """Embed the text, and keep the arguments of every layer.

        Args:
            model: a causal language model; it is left as it was.
            structure: of the model.
            batches: token ids, int64 ``[b, T]`` of one T.
        """
        self._model = model
        self._per_head = structure.family.rows_per_head
        self._layers = [model.get_submodule(structure.layer_path(i)) for i in range(structure.num_layers)]
        self._arguments: dict[tuple[int, int], dict[str, Any]] = {}
        self.inputs: list[Tensor] = []
        device = next(model.parameters()).device
        with contextlib.ExitStack() as hooks, torch.no_grad():
            hooks.enter_context(skip(model, structure, range(structure.num_layers)))
            for index, layer in enumerate(self._layers):
                hooks.enter_context(layer.register_forward_pre_hook(self._keep(index), with_kwargs=True))
            for tokens in batches:
                hidden_states(model, tokens.to(device))

    def run(self, layer: int, hidden: Tensor, copies: int = 1, *, gradients: bool = False) -> Tensor:
        """Return one layer's output for one batch of hidden states, or for several copies of a batch.

        Args:
            layer: index of the layer.
            hidden: ``[copies * b, T, H]``, of a batch of b samples that the runner was given.
            copies: how often the batch stands in ``hidden``, one copy behind the other.
            gradients: build a graph from ``hidden`` on.
        """
        samples = len(hidden) // copies
        arguments = _repeated(self._arguments[layer, samples], copies, samples, self._per_head)
        with torch.set_grad_enabled(gradients):
            output = self._layers[layer](hidden, **arguments)
        return output[0] if isinstance(output, tuple) else output

    def by_sample(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Return the input of a module while a layer ran on ``hidden``, as :func:`by_sample`."""
        return by_sample(x, len(hidden))

    @contextlib.contextmanager
    def recording(self, modules: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """Yield the latest input of each of the given modules, by path.

        Inputs are recorded within the context only, and before any hook that is registered later sees them.
        """
        inputs: dict[str, Tensor] = {}

        def keep(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _module, args: inputs.update({path: args[0]})

        with contextlib.ExitStack() as hooks:
            for path in modules:
                hooks.enter_context(self._model.get_submodule(path).register_forward_pre_hook(keep(path)))
            yield inputs

    def _keep(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Positions and masks are the same for every batch of one size: samples have one length.
            self._arguments.setdefault((index, len(args[0])), kwargs)
            if index == 0:
                self.inputs.append(args[0])

        return hook


def by_sample(x: Tensor, samples: int) -> Tensor:
    """Return activations as ``[samples, T, C]``, also where a model runs them as ``[samples * T, C]``."""
    return x if x.dim() == 3 else x.reshape(samples, -1, x.shape[-1])


def _repeated(arguments: dict[str, Any], copies: int, samples: int, per_head: Collection[str]) -> dict[str, Any]:
    """Return a layer's arguments for copies of a batch: rows per sample become rows per copy and sample."""

    def repeat(value: Any, always: bool = False) -> Any:
        if isinstance(value, tuple):
            return tuple(repeat(part) for part in value)
        if isinstance(value, Tensor) and value.dim() and (always or len(value) == samples > 1):
            return value.repeat(copies, *[1] * (value.dim() - 1))
        return value

    if copies == 1:
        return arguments
    return {name: repeat(value, name in per_head) for name, value in arguments.items()}
