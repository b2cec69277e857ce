"""One decoder layer, run once over the whole text and pruned on the way: each linear behind all that come before it.

The layer's own forward is followed as far as a linear that is to be pruned; there it is stopped, the next batch comes,
and after the last one the linear is pruned. What a layer's two parts (attention, MLP) compute would be computed again
at every stop. So the input of a part's last linear is kept, and from there on the finished part is stood in for by what
that linear makes of it. Norms whose output only finished parts read are left out of every later run, so that little
but additions runs more than twice.

Beside the hidden states of the text this holds what attention gave, and the input of one linear. Experts are parts of
their own: what each gave its tokens is held until the layer is done, together once more for each expert that a token is
sent to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneengine.model import Site, Structure, get_linear, layer_of
from pruneengine.model.layer_runner import LayerRunner
from pruneengine.model.masking import stand_in
from pruneengine.sparse.matrices import Matrix, of_sites
from pruneengine.sparse.pruners.pruner import Pruner


class UnstageableError(Exception):
    """A part of the layer does not simply give on what its last linear computes.

    Attributes:
        module: that linear.
        left: the layer's matrices that are not pruned yet.
    """

    def __init__(self, module: str, left: tuple[Matrix, ...] = ()) -> None:
        super().__init__(module)
        self.module, self.left = module, left


class _Reached(Exception):  # noqa: N818 (no error: it ends a forward pass)
    def __init__(self, found: object) -> None:
        super().__init__()
        self.found = found


class _Read(Exception):  # noqa: N818
    """Somebody read what nobody was to read."""


class _Unread(Tensor):
    """The output of a module that did not run: it can be handed on, and to do anything else with it raises."""

    @classmethod
    def __torch_function__(cls, *_args: object) -> None:
        raise _Read


_UNREAD = torch.empty(0).as_subclass(_Unread)


def _read(x: Tensor) -> Tensor:
    if x is _UNREAD:
        raise _Read
    return x


class StagedLayer:
    """A decoder layer on its way from stage to stage."""

    def __init__(
        self, model: nn.Module, structure: Structure, walk: LayerRunner, layer: int, hidden: list[Tensor]
    ) -> None:
        """Args: what enters the layer as ``hidden``, ``[b, T, H]`` a batch."""
        self._model, self._structure, self._walk, self._layer, self._hidden = model, structure, walk, layer, hidden
        self._sites = [site for site in structure.sites if layer_of(site.name) == layer]
        # (module of a finished part, its outputs, the length of the tuple that it wraps them in or None)
        self._finished: list[tuple[nn.Module, list[Tensor], int | None]] = []
        # What ran before the last part was finished: it stays idle for as long as nobody reads what it gives.
        self._idle: set[nn.Module] = set()

    def prune(self, matrices: Sequence[Matrix], pruner: Pruner, *, last: bool) -> None:
        """Prune the layer's matrices site by site; ``hidden`` becomes what leaves the layer.

        Args:
            matrices: of this layer.
            pruner: decides on one site's matrices from what enters it.
            last: nobody reads ``hidden`` any more: stop behind the last matrix.

        Raises:
            UnstageableError: with what is left; ``hidden`` is as it was.
        """
        left = of_sites(matrices)
        for entry, out in zip(self._sites[::2], self._sites[1::2], strict=True):
            if entry.name in left:
                pruner.prune(left.pop(entry.name), {entry.name: self._sums(pruner, entry)})
            if last and not left:
                return
            try:
                part, inputs, wrapped, ran = self._kept(out)
            except UnstageableError as error:
                raise UnstageableError(error.module, sum(left.values(), ())) from None
            if out.name in left:
                sums = pruner.sums()
                for x, hidden in zip(inputs, self._hidden, strict=True):
                    sums.add(self._walk.by_sample(x, hidden))
                pruner.prune(left.pop(out.name), {out.name: sums})
            if last and not left:
                return
            linear = get_linear(self._model, out.module)
            for batch, x in enumerate(inputs):
                inputs[batch] = linear(x)
            self._finished.append((part, inputs, wrapped))
            self._idle = ran
        for batch in range(len(self._hidden)):
            self._hidden[batch] = self._run(batch)

    def _sums(self, pruner: Pruner, site: Site):
        sums, module = pruner.sums(), self._model.get_submodule(site.module)
        for batch in range(len(self._hidden)):
            with _stopping(module.register_forward_pre_hook(_reached_with)) as reached:
                self._run(batch)
            sums.add(self._walk.by_sample(reached[0], self._hidden[batch]))
        return sums

    def _kept(self, site: Site) -> tuple[nn.Module, list[Tensor], int | None, set[nn.Module]]:
        """The part that ends in a site's linear, what enters it for each batch, how outputs are wrapped, what ran."""
        linear = get_linear(self._model, site.module)
        part = self._model.get_submodule(self._structure.part_path(site.module))
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []  # no memory: one zero each, expanded
        wrapped = None
        ran: set[nn.Module] = set()

        def keep(x: Tensor) -> Tensor:
            inputs[batch:] = [_read(x)]  # in place of an earlier one where the batch was run again
            outputs.append(x.new_zeros(1).expand(*x.shape[:-1], linear.weight.shape[0]))
            return outputs[-1]

        with contextlib.ExitStack() as hooks:
            for module in self._model.get_submodule(self._structure.layer_path(self._layer)).children():
                hooks.enter_context(module.register_forward_hook(lambda module, *_: ran.add(module)))
            for batch in range(len(self._hidden)):
                with stand_in(linear, keep), _stopping(part.register_forward_hook(_reached_behind)) as reached:
                    self._run(batch)
                given = reached[0]
                wrapped = len(given) if isinstance(given, tuple) else None
                if (given if wrapped is None else given[0]) is not outputs[-1]:
                    raise UnstageableError(site.module)
        return part, inputs, wrapped, ran

    def _run(self, batch: int) -> Tensor:
        try:
            return self._forward(batch)
        except _Read:
            self._idle = set()  # a residual or a part beside the finished one does
            return self._forward(batch)

    def _forward(self, batch: int) -> Tensor:
        with contextlib.ExitStack() as undo:
            for module in self._idle:
                undo.enter_context(stand_in(module, lambda *_args, **_kwargs: _UNREAD))
            for part, outputs, wrapped in self._finished:
                given = outputs[batch] if wrapped is None else (outputs[batch], *[None] * (wrapped - 1))
                undo.enter_context(stand_in(part, lambda *_args, given=given, **_kwargs: given))
            return _read(self._walk.run(self._layer, self._hidden[batch]))


@contextlib.contextmanager
def _stopping(handle):
    """A forward pass within the context may end early at a hook, which is then removed; yields what it found there."""
    found: list = []
    try:
        yield found
    except _Reached as reached:
        found.append(reached.found)
    finally:
        handle.remove()


def _reached_with(_module, args):
    raise _Reached(_read(args[0]))


def _reached_behind(_module, _args, output):
    raise _Reached(output)
