"""Sequential pruning of one decoder layer: each linear is pruned behind all linears before it.

Pruning a linear needs its inputs over the whole text. The layer's own forward runs up to that linear and is stopped
there; then comes the next batch, and after the last one the linear is pruned.

A layer has two parts, attention and the MLP. Running a part again at every stop would be expensive. Instead, once the
last linear of a part is pruned, its outputs are computed from its stored inputs, and the part is replaced by them.
Norms whose output only finished parts read are skipped in every later run, so that little but additions runs more than
twice.

Memory beside the hidden states of the text: the outputs of attention, and the input of one linear. Experts are parts of
their own: the outputs of each are kept until the layer is done. Together they are one hidden state more per token and
expert that the token is sent to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pruneengine.model import Site, Structure, get_linear, layer_of
from pruneengine.model.layer_runner import LayerRunner
from pruneengine.model.masking import stand_in
from pruneengine.sparse.matrices import Matrix, of_sites
from pruneengine.sparse.pruners.pruner import Pruner


class UnstageableError(Exception):
    """A part of the layer whose output is not simply that of its last linear.

    Attributes:
        module: the last linear of the part.
        remaining: the layer's matrices that are not pruned yet.
    """

    def __init__(self, module: str, remaining: tuple[Matrix, ...] = ()) -> None:
        super().__init__(module)
        self.module, self.remaining = module, remaining


class StagedLayer:
    """A decoder layer that is pruned site by site.

    Args:
        model: changed in place.
        structure: of the model.
        runner: of the model; runs the layer.
        layer: index of the layer.
        hidden: hidden states that enter the layer, one ``[b, T, H]`` per batch; replaced by those that leave it.
    """

    def __init__(
        self, model: nn.Module, structure: Structure, runner: LayerRunner, layer: int, hidden: list[Tensor]
    ) -> None:
        self._model, self._structure, self._runner, self._layer, self._hidden = model, structure, runner, layer, hidden
        self._sites = [site for site in structure.sites if layer_of(site.name) == layer]
        self._finished: list[_Part] = []
        # Modules that ran before the last part was finished; they stay idle as long as nobody reads their output.
        self._idle: set[nn.Module] = set()

    def prune(self, matrices: Sequence[Matrix], pruner: Pruner, *, last: bool) -> None:
        """Prune the given matrices site by site; ``hidden`` becomes the output of the layer.

        Args:
            matrices: of this layer.
            pruner: prunes the matrices of one site from the sums of its inputs.
            last: nobody reads ``hidden`` any more, so stop behind the last matrix.

        Raises:
            UnstageableError: with the remaining matrices; ``hidden`` is as it was.
        """
        remaining = of_sites(matrices)
        for entry, out in zip(self._sites[::2], self._sites[1::2], strict=True):
            if entry.name in remaining:
                pruner.prune(remaining.pop(entry.name), {entry.name: self._sums(pruner, entry)})
            if last and not remaining:
                return
            try:
                part, ran = self._part_of(out)
            except UnstageableError as error:
                raise UnstageableError(error.module, sum(remaining.values(), ())) from None
            if out.name in remaining:
                sums = pruner.sums()
                for x, hidden in zip(part.tensors, self._hidden, strict=True):
                    sums.add(self._runner.by_sample(x, hidden))
                pruner.prune(remaining.pop(out.name), {out.name: sums})
            if last and not remaining:
                return
            part.apply(get_linear(self._model, out.module))
            self._finished.append(part)
            self._idle = ran
        for batch in range(len(self._hidden)):
            self._hidden[batch] = self._run(batch)

    def _sums(self, pruner: Pruner, site: Site) -> Any:
        """Return the sums of a site's inputs; each run of the layer stops at the site."""
        sums, module = pruner.sums(), self._model.get_submodule(site.module)
        for batch in range(len(self._hidden)):
            with _stopping(module.register_forward_pre_hook(_stop_with_input)) as reached:
                self._run(batch)
            sums.add(self._runner.by_sample(reached[0], self._hidden[batch]))
        return sums

    def _part_of(self, site: Site) -> tuple[_Part, set[nn.Module]]:
        """Return the part that ends in a site's linear, with the linear's inputs, and the modules that ran on the way.

        Raises:
            UnstageableError: the part's output is not that of the linear.
        """
        linear = get_linear(self._model, site.module)
        module = self._model.get_submodule(self._structure.part_path(site.module))
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []  # no memory: one zero each, expanded
        tuple_length = None
        ran: set[nn.Module] = set()

        def keep(x: Tensor) -> Tensor:
            inputs[batch:] = [_read(x)]  # in place of an earlier one where the batch was run again
            outputs.append(x.new_zeros(1).expand(*x.shape[:-1], linear.weight.shape[0]))
            return outputs[-1]

        with contextlib.ExitStack() as hooks:
            for child in self._model.get_submodule(self._structure.layer_path(self._layer)).children():
                hooks.enter_context(child.register_forward_hook(lambda module, *_: ran.add(module)))
            for batch in range(len(self._hidden)):
                with stand_in(linear, keep), _stopping(module.register_forward_hook(_stop_with_output)) as reached:
                    self._run(batch)
                output = reached[0]
                tuple_length = len(output) if isinstance(output, tuple) else None
                if (output if tuple_length is None else output[0]) is not outputs[-1]:
                    raise UnstageableError(site.module)
        return _Part(module, inputs, tuple_length), ran

    def _run(self, batch: int) -> Tensor:
        try:
            return self._forward(batch)
        except _SkippedOutputReadError:
            self._idle = set()  # a residual, or a part beside the finished one, reads an idle module's output
            return self._forward(batch)

    def _forward(self, batch: int) -> Tensor:
        with contextlib.ExitStack() as undo:
            for module in self._idle:
                undo.enter_context(stand_in(module, lambda *_args, **_kwargs: _UNREAD))
            for part in self._finished:
                output = part.output(batch)
                undo.enter_context(stand_in(part.module, lambda *_args, output=output, **_kwargs: output))
            return _read(self._runner.run(self._layer, self._hidden[batch]))


@dataclass(frozen=True)
class _Part:
    """Attention, the MLP or an expert, replaced by its stored output.

    Attributes:
        module: the part.
        tensors: one per batch: inputs of the part's last linear, and from :meth:`apply` on its outputs.
        tuple_length: length of the tuple whose first element is the output; None where the output is bare.
    """

    module: nn.Module
    tensors: list[Tensor]
    tuple_length: int | None

    def apply(self, linear: nn.Module) -> None:
        """Replace the stored inputs by the outputs of the last linear, batch by batch."""
        for batch, x in enumerate(self.tensors):
            self.tensors[batch] = linear(x)

    def output(self, batch: int) -> Tensor | tuple[Tensor | None, ...]:
        """Return the part's output for a batch, in a tuple of None where the module returns one."""
        if self.tuple_length is None:
            return self.tensors[batch]
        return (self.tensors[batch], *[None] * (self.tuple_length - 1))


class _SkippedOutputReadError(Exception):
    """The output of a module that did not run was read."""


class _Unread(Tensor):
    """The output of a module that did not run. It can be passed on; every other use raises."""

    @classmethod
    def __torch_function__(cls, *_args: object) -> None:
        raise _SkippedOutputReadError


_UNREAD = torch.empty(0).as_subclass(_Unread)


def _read(x: Tensor) -> Tensor:
    """Return ``x`` unless it is the output of a module that did not run."""
    if x is _UNREAD:
        raise _SkippedOutputReadError
    return x


class _Stop(Exception):  # noqa: N818 (no error: it ends a forward pass)
    """The end of a forward pass at a hook, with the value that the hook saw."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


@contextlib.contextmanager
def _stopping(handle: RemovableHandle) -> Iterator[list[Any]]:
    """Let a forward pass within the context end at a hook; yield a list that receives the value the hook saw.

    The hook is removed at the end.
    """
    reached: list[Any] = []
    try:
        yield reached
    except _Stop as stop:
        reached.append(stop.value)
    finally:
        handle.remove()


def _stop_with_input(_module: nn.Module, args: tuple[Any, ...]) -> None:
    raise _Stop(_read(args[0]))


def _stop_with_output(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    raise _Stop(output)
