"""What can be removed from a model: its units, the slices that go with each, and the inputs they read.

This is the only module that knows model families. Everything after it works on :class:`Structure`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

KINDS = ("heads", "mlp", "layers")


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its parts. Paths of linears are relative to one decoder layer."""

    model_types: tuple[str, ...]
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    attention_out: str = "self_attn.o_proj"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_out: str = "mlp.down_proj"
    # (config flag, linears that it gives a bias)
    bias_flags: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def bias_flag(self, linear: str) -> tuple[str | None, tuple[str, ...]]:
        """The config flag that gives a linear its bias, and all that it gives one; None and itself without a flag."""
        return next(((flag, paths) for flag, paths in self.bias_flags if linear in paths), (None, (linear,)))

    @property
    def linears(self) -> tuple[str, ...]:
        return (self.query, self.key, self.value, self.attention_out, *self.mlp_in, self.mlp_out)


_ATTENTION_BIAS = ("attention_bias", (Family.query, Family.key, Family.value, Family.attention_out))
_MLP_BIAS = ("mlp_bias", (*Family.mlp_in, Family.mlp_out))

FAMILIES = (
    Family(model_types=("llama",), bias_flags=(_ATTENTION_BIAS, _MLP_BIAS)),
    Family(model_types=("mistral", "qwen2")),
    Family(model_types=("qwen3",), bias_flags=(_ATTENTION_BIAS,)),
)


@dataclass(frozen=True)
class Member:
    """One linear's share of a group: ``width`` consecutive rows (axis 0, with the bias) or columns (axis 1) a unit."""

    module: str
    axis: int
    width: int
    site: str


@dataclass(frozen=True)
class Group:
    """All units of one kind in one layer, with the slices that must go together.

    ``root_width`` is the width of a unit at the group's root (``head_dim`` for heads, 1 for channels): scores are
    kept at this resolution until the members have been aggregated, as LLM-Pruner does.
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
        return self.units * self.unit_params

    def __str__(self) -> str:
        what = {"heads": "KV groups", "mlp": "channels"}[self.kind]
        slices = ", ".join(
            f"{m.module.rsplit('.', 1)[-1]}[{'rows' if m.axis == 0 else 'columns'} x{m.width}]" for m in self.members
        )
        return f"{self.name}: {self.units} {what} of {self.unit_params:,} parameters ({slices})"


@dataclass(frozen=True)
class Site:
    """One distinct linear input: the module whose input is read, and everyone who reads the same tensor."""

    name: str
    module: str
    consumers: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Structure:
    """The prunable structure of one model; a value, free of weights."""

    model_type: str
    family: Family
    head_dim: int
    queries_per_kv: int
    groups: tuple[Group, ...]
    sites: tuple[Site, ...]
    layer_params: tuple[int, ...]
    total_params: int

    @property
    def num_layers(self) -> int:
        return len(self.layer_params)

    @cached_property
    def by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def of_kind(self, kinds: Iterable[str], layers: Iterable[int] | None = None) -> tuple[Group, ...]:
        """Groups of these kinds, in these layers (all by default)."""
        chosen = None if layers is None else set(layers)
        return tuple(g for g in self.groups if g.kind in kinds and (chosen is None or g.layer in chosen))

    def scored(self, kinds: Iterable[str], layers: Iterable[int]) -> tuple[Group, ...]:
        """The groups whose scores a prune of these kinds and layers reads: all kinds where whole layers compete."""
        return self.of_kind(("heads", "mlp") if "layers" in kinds else kinds, layers)

    def prunable_params(self, kinds: Iterable[str]) -> int:
        """The denominator of a ratio: parameters that removing every unit of these kinds would remove."""
        if "layers" in kinds:
            return sum(self.layer_params)
        return sum(group.params for group in self.of_kind(kinds))

    def layer_path(self, layer: int) -> str:
        return f"{self.family.layers}.{layer}"


def find_groups(model: nn.Module) -> Structure:
    """Find the prunable units of a causal language model of the Llama family.

    Works on the meta device and on models that were pruned before (widths are read from the weights).

    Raises:
        ValueError: the architecture is unknown, or a part it should have is absent; the message names it.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = next((f for f in FAMILIES if model_type in f.model_types), None)
    if family is None:
        known = ", ".join(t for f in FAMILIES for t in f.model_types)
        raise ValueError(
            f"unknown architecture {model_type!r} ({type(model).__name__}): looked for config.model_type in {known}"
        )
    layers = _module(model, family.layers, model_type)
    head_dim = _head_dim(model, layers, family)
    groups: list[Group] = []
    sites: list[Site] = []
    for index, layer in enumerate(layers):
        linears = {path: _linear(layer, path, f"{family.layers}.{index}") for path in family.linears}
        prefix = f"{family.layers}.{index}"
        groups.append(_heads_group(index, prefix, linears, family, head_dim))
        groups.append(_mlp_group(index, prefix, linears, family))
        sites.extend(_sites(index, prefix, linears, family))
    return Structure(
        model_type=model_type,
        family=family,
        head_dim=head_dim,
        queries_per_kv=groups[0].members[-1].width // head_dim,
        groups=tuple(groups),
        sites=tuple(sites),
        layer_params=tuple(sum(p.numel() for p in layer.parameters()) for layer in layers),
        total_params=sum(p.numel() for p in model.parameters()),
    )


def model_fingerprint(model: nn.Module) -> str:
    """A short hash of architecture, shapes and weights: equal for equal models, on any device and thread count.

    Of every tensor it takes the sum of all bit patterns as whole numbers (exact in any order) and a sample of values:
    one read of the weights, and no copy.
    """
    digest = hashlib.sha256(str(getattr(model.config, "model_type", "")).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta":
            flat = parameter.detach().reshape(-1)
            bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
            # In pieces: a sum in int64 makes a copy in int64 first.
            total = sum(piece.sum(dtype=torch.int64) for piece in bits.split(1 << 20))
            digest.update(str(int(total)).encode())
            digest.update(bits[:: -(-flat.numel() // 4096)].cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def get_linear(model: nn.Module, path: str) -> nn.Linear:
    return model.get_submodule(path)


def unit_slices(units: Tensor, width: int) -> Tensor:
    """Row or column indices (int64) of the given units, each ``width`` consecutive entries."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).reshape(-1)


def _module(root: nn.Module, path: str, where: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise ValueError(f"{where}: looked for {path!r} and did not find it in {type(root).__name__}") from None


def _linear(layer: nn.Module, path: str, where: str) -> nn.Linear:
    module = _module(layer, path, where)
    if not isinstance(module, nn.Linear):
        raise ValueError(f"{where}.{path}: expected torch.nn.Linear, found {type(module).__name__}")
    return module


def _head_dim(model: nn.Module, layers: nn.Module, family: Family) -> int:
    attention = layers[0].get_submodule(family.query.rsplit(".", 1)[0]) if len(layers) else None
    head_dim = getattr(attention, "head_dim", None) or getattr(model.config, "head_dim", None)
    return head_dim or model.config.hidden_size // model.config.num_attention_heads


def _heads_group(index: int, prefix: str, linears: dict[str, nn.Linear], family: Family, head_dim: int) -> Group:
    # Shapes, not in_features and out_features: those are only as good as whoever narrowed the layer before.
    rows = {path: linears[path].weight.shape[0] for path in (family.query, family.key)}
    kv_heads, rest = divmod(rows[family.key], head_dim)
    if rest or not kv_heads:
        raise ValueError(f"{prefix}: {rows[family.key]} key rows are no whole number of heads of {head_dim}")
    query_width, rest = divmod(rows[family.query], kv_heads)
    if rest or query_width % head_dim:
        raise ValueError(f"{prefix}: {rows[family.query]} query rows do not spread over {kv_heads} heads of {head_dim}")
    site, out_site = f"layers.{index}.attn_in", f"layers.{index}.o_in"
    queries = Member(f"{prefix}.{family.query}", 0, query_width, site)
    keys = Member(f"{prefix}.{family.key}", 0, head_dim, site)
    values = Member(f"{prefix}.{family.value}", 0, head_dim, site)
    out = Member(f"{prefix}.{family.attention_out}", 1, query_width, out_site)
    # The root comes first: LLM-Pruner starts from q_proj under MHA and from k_proj under GQA.
    members = (queries, keys, values, out) if query_width == head_dim else (keys, queries, values, out)
    params = _unit_params(members, linears, prefix)
    return Group(f"layers.{index}.heads", "heads", index, kv_heads, params, head_dim, members)


def _mlp_group(index: int, prefix: str, linears: dict[str, nn.Linear], family: Family) -> Group:
    site, out_site = f"layers.{index}.mlp_in", f"layers.{index}.down_in"
    members = (
        *(Member(f"{prefix}.{path}", 0, 1, site) for path in family.mlp_in),
        Member(f"{prefix}.{family.mlp_out}", 1, 1, out_site),
    )
    params = _unit_params(members, linears, prefix)
    return Group(f"layers.{index}.mlp", "mlp", index, linears[family.mlp_out].weight.shape[1], params, 1, members)


def _unit_params(members: tuple[Member, ...], linears: dict[str, nn.Linear], prefix: str) -> int:
    total = 0
    for member in members:
        linear = linears[member.module.removeprefix(f"{prefix}.")]
        biased = member.axis == 0 and linear.bias is not None
        total += member.width * (linear.weight.shape[1 - member.axis] + biased)
    return total


def _sites(index: int, prefix: str, linears: dict[str, nn.Linear], family: Family) -> Iterable[Site]:
    readers = {
        "attn_in": (family.query, family.key, family.value),
        "o_in": (family.attention_out,),
        "mlp_in": family.mlp_in,
        "down_in": (family.mlp_out,),
    }
    for name, paths in readers.items():
        consumers = tuple(f"{prefix}.{path}" for path in paths)
        yield Site(f"layers.{index}.{name}", consumers[0], consumers, linears[paths[0]].weight.shape[1])
