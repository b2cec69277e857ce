"""Layer-by-layer pruning pass over the calibration text.

The inputs of a layer have passed through the layers already pruned (modes "sequential" and "two-pass") or through the
dense model (mode "one-shot").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pruneengine.common.progress import track
from pruneengine.model import Structure, get_linear
from pruneengine.model.edit import set_weight
from pruneengine.model.layer_runner import LayerRunner
from pruneengine.sparse.matrices import Matrix, of_layers
from pruneengine.sparse.pruners.pruner import Pruner
from pruneengine.sparse.resume import KeptLayer, PartialPrune
from pruneengine.sparse.staged_layer import StagedLayer, UnstageableError


def prune_layers(
    model: nn.Module,
    structure: Structure,
    matrices: Sequence[Matrix],
    pruner: Pruner,
    batches: Sequence[Tensor],
    mode: str,
    description: str,
    partial: PartialPrune | None = None,
) -> tuple[str, ...]:
    """Run the layers one by one up to the last with a matrix to prune, and prune them on the way.

    Memory beside the model: the hidden states of the text, and the input sums of one layer. Mode "sequential" holds
    the sums of one site only. But it also holds the outputs of attention (as much again as the hidden states), the
    input of one linear, and as much again for each expert that a token is sent to.

    Args:
        model: in evaluation mode, without gradients; changed in place. Ctrl-C leaves the layers before it pruned.
        structure: of the model.
        matrices: those that lose a weight.
        pruner: of the method.
        batches: token ids, int64 ``[b, T]``, all with the same T.
        mode: as in :class:`pruneengine.sparse.config.SparseConfig`.
        description: label of the progress display.
        partial: store of finished layers. Layers that it holds are restored, layers pruned now are added to it.

    Returns:
        Warnings: everything that went otherwise than asked.
    """
    layers = of_layers(matrices)
    last = max(layers, default=-1)
    layer_pass = _LayerPass(model, structure, batches, pruner, mode)
    warnings: list[str] = []
    for layer in track(range(last + 1), description):
        chosen, advance = layers.get(layer, ()), layer < last
        kept = partial.load(layer) if partial and chosen else None
        if kept is not None:
            layer_pass.restore(layer, kept, advance=advance)
            warnings += kept.warnings
            continue
        layer_warnings = layer_pass.prune(layer, chosen, advance=advance)
        warnings += layer_warnings
        if partial and chosen:
            partial.keep(model, chosen, layer_warnings)
    return (*warnings, *(partial.warnings if partial else ()))


class _LayerPass:
    """One run through the layers: the model, its pruner, and the hidden states that enter the next layer."""

    def __init__(
        self, model: nn.Module, structure: Structure, batches: Sequence[Tensor], pruner: Pruner, mode: str
    ) -> None:
        self._model, self._structure, self._pruner, self._mode = model, structure, pruner, mode
        self._runner = LayerRunner(model, structure, batches)
        self._hidden = self._runner.inputs

    def prune(self, layer: int, matrices: Sequence[Matrix], *, advance: bool) -> tuple[str, ...]:
        """Prune the given matrices of a layer; with ``advance`` the hidden states become the layer's output.

        Returns:
            Warnings of this layer, the pruner's last.
        """
        earlier = len(self._pruner.warnings)
        warnings = self._prune(layer, matrices, advance=advance)
        return (*warnings, *self._pruner.warnings[earlier:])

    def restore(self, layer: int, kept: KeptLayer, *, advance: bool) -> None:
        """Set the weights of a layer that was pruned before; with ``advance`` the hidden states go through it."""
        dense = self._mode == "one-shot"
        if advance and dense:
            self._advance(layer)
        for name, weight in kept.weights.items():
            set_weight(get_linear(self._model, name), weight)
        if advance and not dense:
            self._advance(layer)

    def _prune(self, layer: int, matrices: Sequence[Matrix], *, advance: bool) -> tuple[str, ...]:
        warnings: tuple[str, ...] = ()
        if matrices and self._mode == "sequential":
            try:
                # Not held by a name: its stored outputs must be gone before the layer runs as a whole.
                StagedLayer(self._model, self._structure, self._runner, layer, self._hidden).prune(
                    matrices, self._pruner, last=not advance
                )
                return ()
            except UnstageableError as error:
                warnings = (
                    f"layer {layer} ran twice: {error.module} is not the last to touch what its part gives, so the "
                    "statistics of the linears behind it are those of the layer as it was before they were pruned",
                )
                matrices = error.remaining
        one_shot = bool(matrices) and self._mode == "one-shot"
        if matrices:
            self._pruner.prune(matrices, self._observe(layer, matrices, advance=one_shot))
        if advance and not one_shot:
            self._advance(layer)
        return warnings

    def _observe(self, layer: int, matrices: Sequence[Matrix], *, advance: bool) -> dict[str, Any]:
        """Return the sums of each site's inputs from running the layer as it is, by the site's name."""
        modules = {matrix.site: matrix.name for matrix in matrices}
        sums = {site: self._pruner.sums() for site in modules}
        for batch, hidden in enumerate(self._hidden):
            with self._runner.recording(modules.values()) as seen:
                output = self._runner.run(layer, hidden)
            for site, module in modules.items():
                sums[site].add(self._runner.by_sample(seen[module], hidden))
            if advance:
                self._hidden[batch] = output
        return sums

    def _advance(self, layer: int) -> None:
        for batch, hidden in enumerate(self._hidden):
            self._hidden[batch] = self._runner.run(layer, hidden)
