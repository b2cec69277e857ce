"""A plan carried out on a model: mask (undoable) and compact (final).

Zeroing what a removed head or channel feeds into o_proj or down_proj gives the same logits as removing it, so a
candidate is tried by mask and only the final plan is compacted. Both take what makes up for removed units: constant
inputs in their place (mask), or new values of the linears that read them (both).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError
from pruneengine.model import Group, Structure, find_groups, get_linear, layer_of, unit_slices
from pruneengine.model.config_sync import layer_counts, sync_config
from pruneengine.model.edit import (
    complete_biases,
    count_experts,
    drop_experts,
    drop_layers,
    narrow,
    replace_bias,
    replace_weight,
    set_counts,
)
from pruneengine.model.masking import choose_among, gate, kept_mask, lent, skip
from pruneengine.model.structure import index_tensor
from pruneengine.structured.plan import Plan


@dataclass(frozen=True, eq=False)
class Correction:
    """New values of an o_proj or down_proj that reads removed units; None leaves a part as it is.

    Attributes:
        weight: ``[out, kept columns]``.
        bias: ``[out]``, in place of the linear's present bias.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None


@contextlib.contextmanager
def mask(
    model: nn.Module,
    plan: Plan,
    *,
    structure: Structure | None = None,
    means: Mapping[str, Tensor] | None = None,
    corrections: Mapping[str, Correction] | None = None,
    layers: Iterable[int] | None = None,
) -> Iterator[nn.Module]:
    """Make the model compute within the context what the compacted model would; afterwards it is as before.

    Inputs of o_proj and down_proj are multiplied by a 0/1 vector, and removed decoder layers pass their input on
    (run it with ``use_cache=False``: a skipped layer leaves no cache entry).

    Args:
        model: the dense model.
        plan: the units that stay.
        structure: the model's structure, if it is at hand.
        means: ``[units * width]`` per group name: constant outputs of removed channels, in place of zero. The same as
            compacting with the bias of :func:`pruneengine.structured.compensate.bias_corrections`.
        corrections: per module path, as :func:`compact` takes them; not together with ``means``.
        layers: mask these decoder layers only; None for all.

    Raises:
        ValueError: the plan, or a correction, does not fit the model.
    """
    structure = structure or find_groups(model)
    plan.check(structure)
    if means is not None and corrections is not None:
        raise InputError("means and corrections make up for the same units; give one of them")
    chosen = set(range(structure.num_layers) if layers is None else layers)
    partial = {n: kept for n, kept in _partial(plan).items() if structure.by_name[n].layer in chosen}
    gates = {n: kept_mask(plan.units[n], kept) for n, kept in partial.items()}
    targets = _checked(model, structure, plan, corrections or {})
    with contextlib.ExitStack() as undo:
        undo.enter_context(skip(model, structure, chosen - set(plan.kept_layers)))
        undo.enter_context(gate(model, structure, gates, means=means))
        for layer, kept in _fewer_experts(plan).items():
            assert structure.family.experts is not None  # the plan names experts of this model
            if layer in chosen:
                router = f"{structure.layer_path(layer)}.{structure.family.experts.router}"
                undo.enter_context(choose_among(model.get_submodule(router), kept))
        for linear, group, correction in targets:
            undo.enter_context(lent(linear, _lent(linear, group, plan.keep[group.name], correction)))
        yield model


def compact(
    model: nn.Module,
    plan: Plan,
    *,
    structure: Structure | None = None,
    corrections: Mapping[str, Correction] | None = None,
) -> nn.Module:
    """Remove the units that the plan does not keep, in place, and update the config; return the model.

    The kept rows and columns are gathered by :func:`pruneengine.ops.gather_rows` and
    :func:`~pruneengine.ops.gather_columns`, one linear at a time, so the peak is the model plus one matrix.

    A bias where there was none is given to the same linear of every layer, and to those that share its flag in the
    config (zeros: they change nothing), so that a config can describe the model.

    Args:
        model: the dense model.
        plan: the units that stay.
        structure: the model's structure, if it is at hand.
        corrections: per module path of the dense model, for groups that the plan narrows.

    Raises:
        ValueError: before anything changes: the plan, or a correction, does not fit the model.
    """
    structure = structure or find_groups(model)
    plan.check(structure)
    targets = _checked(model, structure, plan, corrections or {})
    for name, kept in _partial(plan).items():
        narrow(model, structure.by_name[name], index_tensor(kept))
    for linear, _group, correction in targets:
        _correct(linear, correction)
    complete_biases(model, structure)
    drop_experts(model, structure, _fewer_experts(plan))
    if len(plan.kept_layers) < structure.num_layers:
        drop_layers(model, structure, plan.kept_layers)
    sync_config(model)
    after = find_groups(model)
    set_counts(model, after, layer_counts(after))
    count_experts(model, after)
    return model


def _partial(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the kept units of the groups that lose some of their units."""
    return {name: kept for name, kept in plan.keep.items() if len(kept) < plan.units[name]}


def _fewer_experts(plan: Plan) -> dict[int, tuple[int, ...]]:
    """Return the kept experts of the layers that lose whole experts."""
    return {layer: plan.kept_experts(layer) for layer in sorted({layer_of(name) for name in plan.lost_experts})}


def _checked(
    model: nn.Module, structure: Structure, plan: Plan, corrections: Mapping[str, Correction]
) -> list[tuple[nn.Linear, Group, Correction]]:
    """Return each correction with its linear and group; ValueError if one does not fit."""
    groups = {structure.by_name[name].members[-1].module: structure.by_name[name] for name in _partial(plan)}
    if foreign := corrections.keys() - groups.keys():
        raise InputError(f"correction of {min(foreign)}: the plan removes nothing that it reads")
    targets = []
    for path, correction in corrections.items():
        linear, group = get_linear(model, path), groups[path]
        out = linear.weight.shape[0]
        expected = {"weight": (out, len(plan.keep[group.name]) * group.members[-1].width), "bias": (out,)}
        for part, shape in expected.items():
            values = getattr(correction, part)
            if values is not None and tuple(values.shape) != shape:
                raise InputError(f"correction of {path}: {part} is {tuple(values.shape)}, expected {shape}")
        targets.append((linear, group, correction))
    return targets


def _lent(linear: nn.Linear, group: Group, kept: tuple[int, ...], correction: Correction) -> dict[str, Tensor]:
    """Return the parameters that make a linear of the masked model compute what the corrected one would, by name."""
    weight, parameters = linear.weight, {}
    if correction.weight is not None:
        index = unit_slices(index_tensor(kept), group.members[-1].width).to(weight.device)
        parameters["weight"] = torch.zeros_like(weight).index_copy_(1, index, correction.weight.to(weight))
    if correction.bias is not None:
        parameters["bias"] = correction.bias.to(weight)
    return parameters


def _correct(linear: nn.Linear, correction: Correction) -> None:
    if correction.weight is not None:
        replace_weight(linear, correction.weight.to(linear.weight))
    if correction.bias is not None:
        replace_bias(linear, correction.bias.to(linear.weight))
