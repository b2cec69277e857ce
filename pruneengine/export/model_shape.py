"""Shape of a model, which decides the runtimes that open it: family, width of every layer, biases, positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pruneengine.checkpoint.equivalent_class import model_to_save
from pruneengine.model import Family, Group, Structure, find_groups, text_config
from pruneengine.model.families import EVEN_HEADS_TYPE
from pruneengine.structured.plan import Plan


@dataclass(frozen=True)
class ModelShape:
    """Shape of a decoder-only model, as in its checkpoint.

    Attributes:
        family: its ``model_type``.
        hidden, head_dim: sizes of a token's vector and of one head.
        heads, kv_heads, channels: query heads, key-value heads and MLP channels of every layer.
        unlike_llama: why a program that computes Llama does not compute this model or its equivalent. None if it does,
            apart from the biases, norms, positions and window below.
        kinds_without_config_name: kinds of units, "heads" and "mlp", whose number the config cannot express.
        unsaved_kinds: kinds of ``kinds_without_config_name`` whose number differs from the dense model's. Such a
            checkpoint needs the shipped modelling file.
        biases: linears of a layer that have a bias.
        biases_without_flag: whether no flag of the family's config gives some of the biases.
        query_norms: whether queries and keys are normalised.
        rope: kind of rotary positions ("default", "linear", "llama3", ...).
        window: tokens that attention looks back, or None for all.
        activation: activation of the MLP, None if the config has no ``hidden_act``.
        experts: channels of every expert, layer by layer; ``channels`` are then those of shared experts, if any.
    """

    family: str
    hidden: int
    head_dim: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    channels: tuple[int, ...]
    unlike_llama: str | None = None
    kinds_without_config_name: tuple[str, ...] = ()
    unsaved_kinds: tuple[str, ...] = ()
    biases: frozenset[str] = frozenset()
    biases_without_flag: bool = False
    query_norms: bool = False
    rope: str = "default"
    window: int | None = None
    activation: str | None = "silu"
    experts: tuple[tuple[int, ...], ...] = ()

    @property
    def uniform(self) -> bool:
        """True if every layer has the same widths and the same number of experts, all of one width."""
        numbers, widths = map(len, self.experts), (width for layer in self.experts for width in layer)
        counted = (self.heads, self.kv_heads, self.channels, numbers, widths)
        return all(len(set(counts)) <= 1 for counts in counted)

    @property
    def one_channel_less(self) -> ModelShape:
        """Shape with one channel less in the first layer, or in its first expert."""
        if self.channels:
            return replace(self, channels=(self.channels[0] - 1, *self.channels[1:]))
        (first, *others), *layers = self.experts
        return replace(self, experts=((first - 1, *others), *layers))

    @property
    def not_plain(self) -> str | None:
        """Reason why the family's own class in transformers cannot hold this shape; None if it can.

        A Llama with head counts that do not divide the hidden size counts as plain: an equivalent Mistral holds it.
        """
        if not self.uniform:
            return "the layers differ in width"
        if self.unsaved_kinds:
            return f"the config has no name for widths of {' or '.join(self.unsaved_kinds)}"
        if self.biases_without_flag:
            return "its biases have no flag in the config"
        if self.family == EVEN_HEADS_TYPE and self.hidden % max(self.heads) != 0 and self.biases:
            return "transformers wants a Llama's heads to divide the hidden size, and its twin Mistral has no biases"
        return None

    def after(self, plan: Plan) -> ModelShape:
        """Return the shape of the model after ``plan``."""

        def kept(counts: tuple[int, ...], kind: str) -> tuple[int, ...]:
            names = {layer: f"layers.{layer}.{kind}" for layer in plan.kept_layers}
            return tuple(counts[i] * len(plan.keep[name]) // plan.units[name] for i, name in names.items())

        heads, channels = kept(self.heads, "heads"), kept(self.channels, "mlp") if self.channels else ()
        before = {"heads": self.heads, "mlp": self.channels}
        after = {"heads": heads, "mlp": channels}
        changed = [kind for kind in self.kinds_without_config_name if set(after[kind]) != set(before[kind])]
        return replace(
            self,
            heads=heads,
            kv_heads=kept(self.kv_heads, "heads"),
            channels=channels,
            unsaved_kinds=tuple(
                kind for kind in self.kinds_without_config_name if kind in self.unsaved_kinds or kind in changed
            ),
            experts=tuple(_kept_channels(plan, layer) for layer in plan.kept_layers) if self.experts else (),
        )


def model_shape(model: nn.Module) -> ModelShape:
    """Read the shape from a model's modules and config; its weights may be on the meta device.

    Raises:
        ValueError: as :func:`pruneengine.model.find_groups`.
    """
    model = model_to_save(model)
    structure, config = find_groups(model), text_config(model.config)
    family, first = structure.family, model.get_submodule(structure.layer_path(0))
    rope = getattr(config, "rope_parameters", None) or {}
    attention = first.get_submodule(family.query.rpartition(".")[0])
    kinds_without_config_name = tuple(
        kind for kind in family.kinds_without_config_name if kind != "heads" or structure.undivided_heads is None
    )
    heads, channels = structure.of_kind(("heads",)), [group for group in structure.groups if group.part == "mlp"]
    experts = [structure.experts(layer) for layer in range(structure.num_layers)] if family.experts else []
    return ModelShape(
        family=structure.model_type,
        hidden=config.hidden_size,
        head_dim=structure.head_dim,
        heads=tuple(_query_heads(group, structure) for group in heads),
        kv_heads=tuple(_query_heads(group, structure) // structure.queries_per_kv for group in heads),
        channels=tuple(group.units for group in channels),
        unlike_llama=_unlike_llama(family, rope),
        kinds_without_config_name=kinds_without_config_name,
        unsaved_kinds=kinds_without_config_name if getattr(config, "pruneengine_shapes", None) else (),
        biases=frozenset(path for path in family.linears if first.get_submodule(path).bias is not None),
        biases_without_flag=bool(getattr(config, "pruneengine_biases", None)),
        query_norms=hasattr(attention, "q_norm"),
        rope=rope.get("rope_type", "default"),
        window=_window(config),
        activation=getattr(config, "hidden_act", None),
        experts=tuple(tuple(expert.units for expert in of_layer) for of_layer in experts),
    )


def _query_heads(group: Group, structure: Structure) -> int:
    return group.units * group.members[-1].width // structure.head_dim


def _kept_channels(plan: Plan, layer: int) -> tuple[int, ...]:
    return tuple(len(plan.keep[f"layers.{layer}.experts.{expert}.mlp"]) for expert in plan.kept_experts(layer))


def _unlike_llama(family: Family, rope: dict[str, Any]) -> str | None:
    if family.experts:
        return "its layers hold experts"
    if not family.by_widths and not family.equivalent:
        own = [path for path in family.linears if path not in Family(()).linears]
        return f"a layer has {', '.join(own)}, which are none of Llama's linears"
    if family.unlike_llama is None and rope.get("partial_rotary_factor", 1) != 1:
        return f"rotary positions turn {rope['partial_rotary_factor']} of each head, and not all of it"
    return family.unlike_llama


def _window(config: Any) -> int | None:
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    sliding = window is not None and (kinds is None or "sliding_attention" in kinds)
    return window if sliding and window < config.max_position_embeddings else None
