"""Search for the groups and sites of every layer, from a model and its family's entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.model.checks import check_prunable
from pruneengine.model.families import Family, family_of
from pruneengine.model.structure import Group, Member, Site, Structure, text_config


def find_groups(model: nn.Module) -> Structure:
    """Find the prunable units of a causal language model of a known family.

    Works on the meta device and on models that were pruned before (widths are read from the weights).

    Raises:
        ValueError: the architecture is unknown, or a part it should have is absent; the message names it. Or experts
            are fused: :func:`pruneengine.model.experts.unfuse_experts` comes first. Or layers were removed by hand and
            the others kept their numbers.
    """
    check_prunable(model, weights=False)
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    family = family_of(model_type, type(model).__name__)
    text = text_config(config)
    for name, value, reason in family.requires:
        if getattr(text, name) != value:
            raise InputError(f"{model_type} with {name}={getattr(text, name)!r} is not supported: {reason}")
    for path, kind, reason in family.requires_modules:
        if not _is_a(model, path, kind):
            raise InputError(f"{model_type} without a {kind} at {path} is not supported: {reason}")
    assert isinstance(model_type, str)  # as in every family's entry
    layers = decoder_layers(model, family)
    if not len(layers):
        raise InputError(f"{model_type}: the model has no decoder layer")
    head_dim = _head_dim(text, layers, family)
    heads_reason = _heads_reason(family, text)
    groups: list[Group] = []
    sites: list[Site] = []
    expert_params: list[tuple[int, ...]] = []
    for index, layer in enumerate(layers):
        prefix = f"{family.layers}.{index}"
        _check_number(layer, index, prefix)
        mlps = family.mlps(_experts(layer, prefix, family))
        paths = [*family.linears, *(path for _, ins, out in mlps for path in (*ins, out))]
        linears = {path: _linear(layer, path, prefix) for path in dict.fromkeys(paths)}
        groups.append(_heads_group(index, prefix, linears, family, head_dim, heads_reason is not None))
        sites.extend(_attention_sites(index, prefix, linears, family))
        for name, ins, out in mlps:
            groups.append(_mlp_group(index, prefix, linears, name, ins, out))
            sites.extend(_mlp_sites(index, prefix, linears, name, ins, out))
        expert_params.append(_expert_params(layer, prefix, family))
    return Structure(
        model_type=model_type,
        family=family,
        head_dim=head_dim,
        queries_per_kv=groups[0].members[-1].width // head_dim,
        groups=tuple(groups),
        sites=tuple(sites),
        layer_params=tuple(sum(p.numel() for p in layer.parameters()) for layer in layers),
        total_params=sum(p.numel() for p in model.parameters()),
        heads_reason=heads_reason,
        expert_params=tuple(expert_params),
        experts_per_token=getattr(text, family.experts.chosen_name) if family.experts else 0,
    )


def _check_number(layer: nn.Module, index: int, path: str) -> None:
    """Raise ValueError for a layer that holds another number than its place: by it, it finds its keys and values."""
    for name, module in layer.named_modules():
        number = getattr(module, "layer_idx", None)
        if isinstance(number, int) and number != index:
            where = f"{path}.{name}" if name else path
            raise InputError(
                f"{where}.layer_idx is {number}, expected {index}: layers were removed or moved by hand; number those "
                "that remain anew, or remove layers by pruneengine (kinds 'layers')"
            )


def _heads_reason(family: Family, config: Any) -> str | None:
    """Return the reason why heads of such a model cannot be removed one by one; None where they can."""
    if family.whole_heads is None:
        return None
    name, value, reason = family.whole_heads
    return reason if name is None or getattr(config, name) == value else None


def get_linear(model: nn.Module, path: str) -> nn.Linear:
    """Return the linear at a path; TypeError if the module there is none."""
    module = model.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise InputTypeError(f"{path}: expected torch.nn.Linear, found {type(module).__name__}")
    return module


def decoder_layers(model: nn.Module, family: Family) -> nn.ModuleList:
    """Return the decoder layers of a model; ValueError if the family's path does not lead to a list of modules."""
    return module_list(model, family.layers, getattr(getattr(model, "config", None), "model_type", ""))


def module_list(root: nn.Module, path: str, where: str = "") -> nn.ModuleList:
    """Return the list of modules at a path; ValueError with the place ``where`` if there is none."""
    modules = _module(root, path, where or type(root).__name__)
    if not isinstance(modules, nn.ModuleList):
        raise InputError(f"{where}: expected torch.nn.ModuleList at {path!r}, found {type(modules).__name__}")
    return modules


def _module(root: nn.Module, path: str, where: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise InputError(f"{where}: looked for {path!r} and did not find it in {type(root).__name__}") from None


def _is_a(root: nn.Module, path: str, kind: str) -> bool:
    try:
        return isinstance(root.get_submodule(path), getattr(nn, kind))
    except AttributeError:
        return False


def _linear(layer: nn.Module, path: str, where: str) -> nn.Linear:
    module = _module(layer, path, where)
    if not isinstance(module, nn.Linear):
        raise InputError(f"{where}.{path}: expected torch.nn.Linear, found {type(module).__name__}")
    return module


def _experts(layer: nn.Module, where: str, family: Family) -> int:
    """Return the number of experts of a layer, each with linears of its own."""
    experts = family.experts
    if experts is None:
        return 0
    if hasattr(_if_any(layer, experts.fused), "gate_up_proj"):
        path = f"{where}.{experts.fused}"
        raise InputError(f"{path}: the experts are fused; call pruneengine.unfuse_experts(model) first")
    if _if_any(layer, experts.path) is None:
        raise InputError(f"{where} has no experts: models of which only some layers have any are not supported")
    return len(module_list(layer, experts.path, where))


def _expert_params(layer: nn.Module, where: str, family: Family) -> tuple[int, ...]:
    """Return the number of parameters that go with each expert of a layer, its row of the router included."""
    if family.experts is None:
        return ()
    row = layer.get_submodule(family.experts.router).get_parameter("weight").shape[1]
    experts = module_list(layer, family.experts.path, where)
    return tuple(row + sum(p.numel() for p in expert.parameters()) for expert in experts)


def _if_any(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _head_dim(config: Any, layers: nn.ModuleList, family: Family) -> int:
    attention = layers[0].get_submodule(family.query.rsplit(".", 1)[0]) if len(layers) else None
    sizes = (getattr(attention, name, None) for name in ("head_dim", "head_size"))
    return (
        next(filter(None, sizes), None)
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
        raise InputError(f"{prefix}: {keys} key rows are no whole number of heads of {head_dim}")
    query_width, rest = divmod(queries, kv_heads)
    if rest or query_width % head_dim:
        raise InputError(f"{prefix}: {queries} query rows do not spread over {kv_heads} heads of {head_dim}")
    site, out_site = f"layers.{index}.attn_in", f"layers.{index}.o_in"
    rows: Sequence[tuple[str, int, range | None]]
    if one_unit:
        kv_heads, query_width = 1, queries
        paths = dict.fromkeys((family.query, family.key, family.value))
        rows = [(path, linears[path].weight.shape[0], None) for path in paths]
    else:
        widths = (query_width, head_dim, head_dim)
        starts = _starts(widths, kv_heads, family.fused if shared else None)
        rows = list(zip((family.query, family.key, family.value), widths, starts, strict=True))
    members = [Member(f"{prefix}.{path}", 0, width, site, start) for path, width, start in rows]
    members.append(Member(f"{prefix}.{family.attention_out}", 1, query_width, out_site))
    # The root comes first: LLM-Pruner starts from q_proj under MHA and from k_proj under GQA.
    if query_width != head_dim and not one_unit:
        members[0], members[1] = members[1], members[0]
    params = _unit_params(members, linears, prefix)
    return Group(f"layers.{index}.heads", "heads", index, kv_heads, params, head_dim, tuple(members))


def _starts(widths: Sequence[int], units: int, fused: str | None) -> list[range | None]:
    """Return the first rows of the units of members that share one linear; None for each where none is shared."""
    starts: list[range | None] = []
    if fused is None:
        return [None for _ in widths]
    start, together = 0, sum(widths)
    for width in widths:
        step = together if fused == "interleaved" else width
        starts.append(range(start, start + units * step, step))
        start += width if fused == "interleaved" else units * width
    return starts


def _mlp_group(
    index: int, prefix: str, linears: dict[str, nn.Linear], name: str, paths: tuple[str, ...], out: str
) -> Group:
    site, out_site = f"layers.{index}.{name}mlp_in", f"layers.{index}.{name}down_in"
    channels = linears[out].weight.shape[1]
    shared = len(set(paths)) < len(paths)
    starts = _starts([1] * len(paths), channels, "stacked" if shared else None)
    members = (
        *(Member(f"{prefix}.{path}", 0, 1, site, start) for path, start in zip(paths, starts, strict=True)),
        Member(f"{prefix}.{out}", 1, 1, out_site),
    )
    params = _unit_params(members, linears, prefix)
    return Group(f"layers.{index}.{name}mlp", "mlp", index, channels, params, 1, members)


def _unit_params(members: Sequence[Member], linears: dict[str, nn.Linear], prefix: str) -> int:
    total = 0
    for member in members:
        linear = linears[member.module.removeprefix(f"{prefix}.")]
        biased = member.axis == 0 and linear.bias is not None
        total += member.width * (linear.weight.shape[1 - member.axis] + biased)
    return total


def _attention_sites(index: int, prefix: str, linears: dict[str, nn.Linear], family: Family) -> Iterable[Site]:
    readers = {"attn_in": (family.query, family.key, family.value), "o_in": (family.attention_out,)}
    return _sites(index, prefix, linears, readers)


def _mlp_sites(
    index: int, prefix: str, linears: dict[str, nn.Linear], name: str, paths: tuple[str, ...], out: str
) -> Iterable[Site]:
    return _sites(index, prefix, linears, {f"{name}mlp_in": paths, f"{name}down_in": (out,)})


def _sites(
    index: int, prefix: str, linears: dict[str, nn.Linear], readers: dict[str, tuple[str, ...]]
) -> Iterable[Site]:
    for name, paths in readers.items():
        consumers = tuple(f"{prefix}.{path}" for path in dict.fromkeys(paths))
        yield Site(f"layers.{index}.{name}", consumers[0], consumers, linears[paths[0]].weight.shape[1])
