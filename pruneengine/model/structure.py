"""Prunable structure of a model as values: members, groups, sites, and the structure that holds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneengine.model.families import Family

KINDS = ("heads", "mlp", "layers", "experts")


@dataclass(frozen=True)
class Member:
    """One linear's share of a group: ``width`` consecutive rows (axis 0, with the bias) or columns (axis 1) per unit.

    Attributes:
        module: path of the linear.
        axis: 0 for rows, 1 for columns.
        width: rows or columns per unit.
        site: name of the site that holds the linear's input.
        starts: first row of each unit in a linear that several members share; None where the linear is this member's
            alone, one unit behind the other.
    """

    module: str
    axis: int
    width: int
    site: str
    starts: range | None = None

    @property
    def name(self) -> str:
        """The module's path, and the member's first row if it shares the module: a name that no other member has."""
        return self.module if self.starts is None else f"{self.module}[{self.starts.start}]"

    def indices(self, units: Tensor) -> Tensor:
        """Return row or column indices of the given units in the linear: int64, unit by unit."""
        if self.starts is None:
            return unit_slices(units, self.width)
        within = torch.arange(self.width, device=units.device)
        return (self.starts.start + units[:, None] * self.starts.step + within).reshape(-1)

    def select(self, values: Tensor) -> Tensor:
        """Return this member's part of a weight ``[R, C]`` or of values of its rows ``[R]``; a view if possible."""
        if self.starts is None:
            return values
        if self.starts.step == self.width:
            return values.narrow(0, self.starts.start, len(self.starts) * self.width)
        return values[self.indices(torch.arange(len(self.starts), device=values.device))]


@dataclass(frozen=True)
class Group:
    """All units of one kind in one layer, with the slices that must go together.

    Attributes:
        name: such as ``layers.3.heads``.
        kind: "heads" or "mlp".
        layer: index of the decoder layer.
        units: number of units.
        unit_params: parameters per unit.
        root_width: width of a unit at the group's root (``head_dim`` for heads, 1 for channels): scores are kept at
            this resolution until the members have been aggregated, as LLM-Pruner does.
        members: shares of the linears, the root first, the linear that reads the units last.
    """

    name: str
    kind: str
    layer: int
    units: int
    unit_params: int
    root_width: int
    members: tuple[Member, ...]

    @property
    def params(self) -> int:
        """Parameters of all units."""
        return self.units * self.unit_params

    @property
    def part(self) -> str:
        """Name that groups of this sort have in every layer: ``heads``, ``mlp`` or ``experts.mlp``."""
        return part_of(self.name)[1]

    def __str__(self) -> str:
        units = {"heads": "KV groups", "mlp": "channels"}[self.kind]
        slices = ", ".join(
            f"{m.name.rsplit('.', 1)[-1]}[{'rows' if m.axis == 0 else 'columns'} x{m.width}]" for m in self.members
        )
        return f"{self.name}: {self.units} {units} of {self.unit_params:,} parameters ({slices})"


@dataclass(frozen=True)
class Site:
    """One distinct linear input.

    Attributes:
        name: such as ``layers.3.mlp_in``.
        module: path of the first linear that reads it, whose hooks see it.
        consumers: paths of all linears that read the same tensor.
        channels: its width.
    """

    name: str
    module: str
    consumers: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Structure:
    """The prunable structure of one model; a value, free of weights.

    Attributes:
        model_type: of the model's config.
        family: the architecture's entry.
        head_dim: channels per head.
        queries_per_kv: query heads per key-value head.
        groups: layer by layer, heads first.
        sites: layer by layer, in the order in which they are read.
        layer_params: parameters of each decoder layer.
        total_params: parameters of the model; a tied one counts once.
        heads_reason: reason why all heads of a layer are one unit, which no plan can remove; None otherwise.
        expert_params: parameters of each expert of each layer, its row of the router included.
        experts_per_token: number of experts per token, which is the least that a layer keeps; 0 without experts.
    """

    model_type: str
    family: Family
    head_dim: int
    queries_per_kv: int
    groups: tuple[Group, ...]
    sites: tuple[Site, ...]
    layer_params: tuple[int, ...]
    total_params: int
    heads_reason: str | None = None
    expert_params: tuple[tuple[int, ...], ...] = ()
    experts_per_token: int = 0

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layer_params)

    @property
    def undivided_heads(self) -> str | None:
        """Reason why no plan can remove some of the heads of a layer; None where one can."""
        if self.heads_reason is None and any(g.units > 1 for g in self.of_kind(("heads",))):
            return None
        return "the heads of a layer are one unit: " + (self.heads_reason or "all share one key-value head")

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    def of_kind(self, kinds: Iterable[str], layers: Iterable[int] | None = None) -> tuple[Group, ...]:
        """Return the groups of the given kinds in the given layers (all by default)."""
        chosen = None if layers is None else set(layers)
        return tuple(g for g in self.groups if g.kind in kinds and (chosen is None or g.layer in chosen))

    def scored(self, kinds: Iterable[str], layers: Iterable[int]) -> tuple[Group, ...]:
        """Return the groups whose scores a prune of kinds and layers reads: all kinds where whole layers compete."""
        if "layers" in kinds:
            return self.of_kind(("heads", "mlp"), layers)
        if "experts" in kinds:
            chosen = set(layers)
            return tuple(g for g in self.groups if g.layer in chosen and (g.kind in kinds or g.part == "experts.mlp"))
        return self.of_kind(kinds, layers)

    def prunable_params(self, kinds: Iterable[str]) -> int:
        """Return the denominator of a ratio: parameters that removing every unit of the kinds would remove."""
        if "layers" in kinds:
            return sum(self.layer_params)
        if "experts" in kinds:
            others = sum(group.params for group in self.of_kind(kinds) if group.part != "experts.mlp")
            return others + sum(map(sum, self.expert_params))
        return sum(group.params for group in self.of_kind(kinds))

    def experts(self, layer: int) -> tuple[Group, ...]:
        """Return the channels of every expert that a layer's router chooses from."""
        return self._experts.get(layer, ())

    @cached_property
    def _experts(self) -> dict[int, tuple[Group, ...]]:
        experts: dict[int, list[Group]] = {}
        for group in self.groups:
            if group.part == "experts.mlp":
                experts.setdefault(group.layer, []).append(group)
        return {layer: tuple(groups) for layer, groups in experts.items()}

    def layer_path(self, layer: int) -> str:
        """Return the path of a decoder layer."""
        return f"{self.family.layers}.{layer}"

    def within(self, path: str) -> str:
        """Return a module's path from its decoder layer."""
        return path.removeprefix(f"{self.family.layers}.").partition(".")[2]

    def linears(self, layer: int) -> tuple[str, ...]:
        """Return paths of all linears of a decoder layer, from that layer, in the order in which they are read."""
        sites = (site for site in self.sites if site.name.startswith(f"layers.{layer}."))
        return tuple(self.within(path) for site in sites for path in site.consumers)

    def part_path(self, out: str) -> str:
        """Return the path of the module that gives on what the linear at ``out`` computes.

        That is attention or the MLP; the linear alone where parts add the residual.
        """
        parent, family = out.rpartition(".")[0], self.family
        return out if family.parts_add_residual or parent.rpartition(".")[0] == family.layers else parent


def part_of(group: str) -> tuple[int, str]:
    """Return the layer in a group's name, and the name that groups of its sort have in every layer."""
    _, layer, *words = group.split(".")
    return int(layer), ".".join(word for word in words if not word.isdecimal())


def layer_of(name: str) -> int:
    """Return the layer in a group's or a site's name."""
    return int(name.split(".")[1])


def expert_of(name: str) -> int | None:
    """Return the expert in the name of a group or a site; None if it is no expert's."""
    _, _, part, *rest = name.split(".")
    return int(rest[0]) if part == "experts" else None


def index_tensor(units: tuple[int, ...]) -> Tensor:
    """Return the given units as int64 ``[K]``; torch.tensor looks at every element of a tuple several times."""
    return torch.from_numpy(np.fromiter(units, np.int64, len(units)))


def unit_slices(units: Tensor, width: int) -> Tensor:
    """Return row or column indices (int64) of the given units, each ``width`` consecutive entries."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).reshape(-1)


def distinct_linears(members: Iterable[Member]) -> tuple[Member, ...]:
    """Return one member per linear: for values that are read once, however many members share the linear."""
    return tuple({member.module: member for member in members}.values())


def text_config(config: Any) -> Any:
    """Return the part of a model's config for its decoder: the config itself unless other parts have their own."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config
