"""A model one decoder layer at a time, on stored hidden states.

What a layer is given beside its hidden states (attention masks, rotary embeddings) is asked of the model once for every
layer and batch shape, by a forward pass whose layers do nothing. From there on layers are run by hand, as often and in
as many variants as a method needs, and the memory is one hidden state a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.model import Structure
from pruneengine.model.decoder import causal_parts
from pruneengine.model.masking import skip


class LayerRunner:
    """The decoder layers of a model, each of which can be run on given hidden states.

    Attributes:
        inputs: what enters the first layer: ``[b, T, H]`` a batch, on the model's device.
    """

    def __init__(self, model: nn.Module, structure: Structure, batches: Iterable[Tensor]) -> None:
        """Args: token ids as ``batches``, int64 ``[b, T]`` of one T."""
        self._model = model
        self._per_head = structure.family.rows_per_head
        self._layers = [model.get_submodule(structure.layer_path(i)) for i in range(structure.num_layers)]
        self._arguments: dict[tuple[int, int], dict[str, Any]] = {}
        self.inputs: list[Tensor] = []
        device = next(model.parameters()).device
        body, _head, _options = causal_parts(model)
        with contextlib.ExitStack() as hooks, torch.no_grad():
            hooks.enter_context(skip(model, structure, range(structure.num_layers)))
            for index, layer in enumerate(self._layers):
                hooks.enter_context(layer.register_forward_pre_hook(self._keep(index), with_kwargs=True))
            for tokens in batches:
                body(input_ids=tokens.to(device), use_cache=False)

    def run(self, layer: int, hidden: Tensor, copies: int = 1) -> Tensor:
        """One layer's output for one batch of what enters it, so many times: ``[copies * b, T, H]``."""
        samples = len(hidden) // copies
        arguments = _repeated(self._arguments[layer, samples], copies, samples, self._per_head)
        with torch.no_grad():
            output = self._layers[layer](hidden, **arguments)
        return output[0] if isinstance(output, tuple) else output

    def by_sample(self, x: Tensor, hidden: Tensor) -> Tensor:
        """What entered a module while a layer ran on ``hidden``, as ``[b, T, C]`` even where it was ``[b * T, C]``."""
        return x if x.dim() == 3 else x.view(*hidden.shape[:2], -1)

    @contextlib.contextmanager
    def recording(self, modules: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """What entered each of these modules last, within the context and before any hook registered later."""
        seen: dict[str, Tensor] = {}

        def keep(path: str):
            return lambda _module, args: seen.update({path: args[0]})

        with contextlib.ExitStack() as hooks:
            for path in modules:
                hooks.enter_context(self._model.get_submodule(path).register_forward_pre_hook(keep(path)))
            yield seen

    def _keep(self, index: int):
        def hook(_module, args, kwargs):
            # Positions and masks are the same for every batch of one size: samples have one length.
            self._arguments.setdefault((index, len(args[0])), kwargs)
            if index == 0:
                self.inputs.append(args[0])

        return hook


def _repeated(arguments: dict[str, Any], copies: int, samples: int, per_head: Collection[str]) -> dict[str, Any]:
    """A layer's arguments for copies of a batch: what has a row a sample gets a row a copy and sample."""

    def repeat(value: Any, always: bool = False) -> Any:
        if isinstance(value, tuple):
            return tuple(repeat(part) for part in value)
        if isinstance(value, Tensor) and value.dim() and (always or len(value) == samples > 1):
            return value.repeat(copies, *[1] * (value.dim() - 1))
        return value

    return arguments if copies == 1 else {name: repeat(of, name in per_head) for name, of in arguments.items()}
