"""From a model and its family's entry to the groups and sites of every layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from pruneengine.structure.families import Family, family_of
from pruneengine.structure.values import Group, Member, Site, Structure


def find_groups(model: nn.Module) -> Structure:
    """Find the prunable units of a causal language model of a known family.

    Works on the meta device and on models that were pruned before (widths are read from the weights).

    Raises:
        ValueError: the architecture is unknown, or a part it should have is absent; the message names it.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    family = family_of(model_type, type(model).__name__)
    text = text_config(config)
    for name, value, reason in family.requires:
        if getattr(text, name) != value:
            raise ValueError(f"{model_type} with {name}={getattr(text, name)!r} is not supported: {reason}")
    for path, kind, reason in family.requires_modules:
        if not _is_a(model, path, kind):
            raise ValueError(f"{model_type} without a {kind} at {path} is not supported: {reason}")
    layers = _module(model, family.layers, model_type)
    head_dim = _head_dim(text, layers, family)
    reason = _heads_reason(family, text)
    groups: list[Group] = []
    sites: list[Site] = []
    for index, layer in enumerate(layers):
        prefix = f"{family.layers}.{index}"
        linears = {path: _linear(layer, path, prefix) for path in family.linears}
        groups.append(_heads_group(index, prefix, linears, family, head_dim, reason is not None))
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
        heads_reason=reason,
    )


def text_config(config: Any) -> Any:
    """The part of a model's config that is about its decoder: the config itself unless other parts have their own."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _heads_reason(family: Family, config: Any) -> str | None:
    """Why the heads of such a model cannot go one by one; None where they can."""
    if family.whole_heads is None:
        return None
    name, value, reason = family.whole_heads
    return reason if name is None or getattr(config, name) == value else None


def get_linear(model: nn.Module, path: str) -> nn.Linear:
    return model.get_submodule(path)


def _module(root: nn.Module, path: str, where: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise ValueError(f"{where}: looked for {path!r} and did not find it in {type(root).__name__}") from None


def _is_a(root: nn.Module, path: str, kind: str) -> bool:
    try:
        return isinstance(root.get_submodule(path), getattr(nn, kind))
    except AttributeError:
        return False


def _linear(layer: nn.Module, path: str, where: str) -> nn.Linear:
    module = _module(layer, path, where)
    if not isinstance(module, nn.Linear):
        raise ValueError(f"{where}.{path}: expected torch.nn.Linear, found {type(module).__name__}")
    return module


def _head_dim(config: Any, layers: nn.Module, family: Family) -> int:
    attention = layers[0].get_submodule(family.query.rsplit(".", 1)[0]) if len(layers) else None
    found = (getattr(attention, name, None) for name in ("head_dim", "head_size"))
    return (
        next(filter(None, found), None)
        or getattr(config, "head_dim", None)
        or (config.hidden_size // config.num_attention_heads)
    )


def _heads_group(
    index: int, prefix: str, linears: dict[str, nn.Linear], family: Family, head_dim: int, one_unit: bool
) -> Group:
    # Shapes, not in_features and out_features: those are only as good as whoever narrowed the layer before.
    shared = family.query == family.key
    queries = linears[family.attention_out].weight.shape[1] if shared else linears[family.query].weight.shape[0]
    keys = (linears[family.key].weight.shape[0] - queries) // 2 if shared else linears[family.key].weight.shape[0]
    kv_heads, rest = divmod(keys, head_dim)
    if rest or not kv_heads:
        raise ValueError(f"{prefix}: {keys} key rows are no whole number of heads of {head_dim}")
    query_width, rest = divmod(queries, kv_heads)
    if rest or query_width % head_dim:
        raise ValueError(f"{prefix}: {queries} query rows do not spread over {kv_heads} heads of {head_dim}")
    site, out_site = f"layers.{index}.attn_in", f"layers.{index}.o_in"
    if one_unit:
        kv_heads, query_width = 1, queries
        paths = dict.fromkeys((family.query, family.key, family.value))
        rows = [(path, linears[path].weight.shape[0], None) for path in paths]
    else:
        widths = (query_width, head_dim, head_dim)
        starts = _starts(widths, kv_heads, family.fused) if shared else (None, None, None)
        rows = list(zip((family.query, family.key, family.value), widths, starts, strict=True))
    members = [Member(f"{prefix}.{path}", 0, width, site, each) for path, width, each in rows]
    members.append(Member(f"{prefix}.{family.attention_out}", 1, query_width, out_site))
    # The root comes first: LLM-Pruner starts from q_proj under MHA and from k_proj under GQA.
    if query_width != head_dim and not one_unit:
        members[0], members[1] = members[1], members[0]
    params = _unit_params(members, linears, prefix)
    return Group(f"layers.{index}.heads", "heads", index, kv_heads, params, head_dim, tuple(members))


def _starts(widths: Sequence[int], units: int, fused: str) -> list[range]:
    """Where the units of members begin that share one linear's rows."""
    found, start, together = [], 0, sum(widths)
    for width in widths:
        step = together if fused == "interleaved" else width
        found.append(range(start, start + units * step, step))
        start += width if fused == "interleaved" else units * width
    return found


def _mlp_group(index: int, prefix: str, linears: dict[str, nn.Linear], family: Family) -> Group:
    site, out_site = f"layers.{index}.mlp_in", f"layers.{index}.down_in"
    channels, paths = linears[family.mlp_out].weight.shape[1], family.mlp_in
    shared = len(set(paths)) < len(paths)
    starts = _starts([1] * len(paths), channels, "stacked") if shared else [None] * len(paths)
    members = (
        *(Member(f"{prefix}.{path}", 0, 1, site, each) for path, each in zip(paths, starts, strict=True)),
        Member(f"{prefix}.{family.mlp_out}", 1, 1, out_site),
    )
    params = _unit_params(members, linears, prefix)
    return Group(f"layers.{index}.mlp", "mlp", index, channels, params, 1, members)


def _unit_params(members: Sequence[Member], linears: dict[str, nn.Linear], prefix: str) -> int:
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
        consumers = tuple(f"{prefix}.{path}" for path in dict.fromkeys(paths))
        yield Site(f"layers.{index}.{name}", consumers[0], consumers, linears[paths[0]].weight.shape[1])
