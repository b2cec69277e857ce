"""The model layer by layer over the calibration text, pruned behind what is pruned already or as the dense model is."""

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
    """Run the layers one by one up to the last that has a matrix to prune, and prune them on the way.

    Memory beside the model: the hidden states of the text, in mode "sequential" as much again for attention's outputs
    (and for each expert that a token is sent to) and the input of one linear; and the sums of one site, in the other
    modes of one layer.

    Args:
        model: in evaluation mode, without gradients; changed in place. Ctrl-C leaves the layers before pruned.
        structure: of the model.
        matrices: those that lose a weight.
        pruner: of the method.
        batches: token ids, int64 ``[b, T]`` of one T.
        mode: as in :class:`pruneengine.sparse.config.SparseConfig`.
        description: for progress.
        partial: layers that were pruned before it was stopped, and where those pruned now are kept.

    Returns:
        Warnings: what went otherwise than asked.
    """
    layers = of_layers(matrices)
    last = max(layers, default=-1)
    walk = LayerRunner(model, structure, batches)
    hidden, warnings = walk.inputs, []
    for layer in track(range(last + 1), description):
        chosen, advance = layers.get(layer, ()), layer < last
        kept = partial.load(layer) if partial and chosen else None
        if kept is not None:
            _restore(model, walk, layer, hidden, kept, dense=mode == "one-shot", advance=advance)
            warnings += kept.warnings
            continue
        before = len(pruner.warnings)
        found = _prune(model, structure, walk, layer, hidden, chosen, pruner, mode, advance=advance)
        found = (*found, *pruner.warnings[before:])
        warnings += found
        if partial and chosen:
            partial.keep(model, chosen, found)
    return (*warnings, *(partial.warnings if partial else ()))


def _prune(
    model: nn.Module,
    structure: Structure,
    walk: LayerRunner,
    layer: int,
    hidden: list[Tensor],
    chosen: Sequence[Matrix],
    pruner: Pruner,
    mode: str,
    *,
    advance: bool,
) -> tuple[str, ...]:
    """Prune one layer; ``hidden`` becomes what leaves it with ``advance``. Returns warnings but for the pruner's."""
    warnings: tuple[str, ...] = ()
    if chosen and mode == "sequential":
        try:
            StagedLayer(model, structure, walk, layer, hidden).prune(chosen, pruner, last=not advance)
            return ()
        except UnstageableError as error:
            warnings = (
                f"layer {layer} ran twice: {error.module} is not the last to touch what its part gives, so the "
                "statistics of the linears behind it are those of the layer as it was before they were pruned",
            )
            chosen = error.left
    if chosen:
        sums = _observe(walk, layer, hidden, chosen, pruner, advance=mode == "one-shot")
        pruner.prune(chosen, sums)
    if advance and not (chosen and mode == "one-shot"):
        _advance(walk, layer, hidden)
    return warnings


def _restore(
    model: nn.Module,
    walk: LayerRunner,
    layer: int,
    hidden: list[Tensor],
    kept: KeptLayer,
    *,
    dense: bool,
    advance: bool,
) -> None:
    """Give a layer the weights that it was pruned to; ``hidden`` becomes what leaves it, pruned or ``dense``."""
    if advance and dense:
        _advance(walk, layer, hidden)
    for name, weight in kept.weights.items():
        set_weight(get_linear(model, name), weight)
    if advance and not dense:
        _advance(walk, layer, hidden)


def _advance(walk: LayerRunner, layer: int, hidden: list[Tensor]) -> None:
    for batch, h in enumerate(hidden):
        hidden[batch] = walk.run(layer, h)


def _observe(
    walk: LayerRunner, layer: int, hidden: list[Tensor], matrices: Sequence[Matrix], pruner: Pruner, *, advance: bool
) -> dict[str, Any]:
    """Sums of what enters each site of a layer that is run as it is; ``hidden`` becomes its output with ``advance``."""
    modules = {matrix.site: matrix.name for matrix in matrices}
    sums = {site: pruner.sums() for site in modules}
    for batch, h in enumerate(hidden):
        with walk.recording(modules.values()) as seen:
            output = walk.run(layer, h)
        for site, module in modules.items():
            sums[site].add(walk.by_sample(seen[module], h))
        if advance:
            hidden[batch] = output
    return sums
