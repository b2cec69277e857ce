"""What decides which runtimes open a model: its family, the width of every layer, its biases and positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from pruneengine.plan import Plan

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The shape of a decoder-only model of the Llama kind.

    Attributes:
        family: its ``model_type``, one of :data:`FAMILIES`.
        hidden, head_dim: sizes of a token's vector and of one head.
        heads, kv_heads, channels: query heads, key-value heads and MLP channels of every layer.
        biases: the linears of a layer that have a bias, out of :data:`LINEARS`.
        loose_biases: some of them are given by no flag of the family's config.
        query_norms: queries and keys are normalised.
        rope: the kind of rotary positions ("default", "linear", "llama3", ...).
        window: tokens that attention looks back, or None for all.
        activation: of the MLP.
    """

    family: str
    hidden: int
    head_dim: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    channels: tuple[int, ...]
    biases: frozenset[str] = frozenset()
    loose_biases: bool = False
    query_norms: bool = False
    rope: str = "default"
    window: int | None = None
    activation: str = "silu"

    @property
    def uniform(self) -> bool:
        """Every layer has the same widths."""
        return all(len(set(counts)) == 1 for counts in (self.heads, self.kv_heads, self.channels))

    @property
    def plain(self) -> bool:
        """The family's own class in transformers holds it (for a Llama with odd head counts, its twin Mistral)."""
        odd = self.family == "llama" and self.hidden % max(self.heads) != 0
        return self.uniform and not self.loose_biases and not (odd and self.biases)

    def after(self, plan: Plan) -> Layout:
        """The layout that ``plan`` leaves of this one."""
        queries = self.heads[0] // self.kv_heads[0]
        kept = [{kind: len(plan.keep[f"layers.{i}.{kind}"]) for kind in ("heads", "mlp")} for i in plan.kept_layers]
        kv_heads = tuple(layer["heads"] for layer in kept)
        return replace(
            self,
            heads=tuple(queries * n for n in kv_heads),
            kv_heads=kv_heads,
            channels=tuple(layer["mlp"] for layer in kept),
        )


def layout_of(model: nn.Module) -> Layout:
    """Read the layout from a model's modules and config; shapes are enough, the weights may be on the meta device.

    Raises:
        ValueError: the model is of another family, or turns only a part of each head by its position.
    """
    config, family = model.config, model.config.model_type
    if family not in FAMILIES:
        raise ValueError(f"model type {family!r} is none of {', '.join(FAMILIES)}")
    layers = model.model.layers
    head_dim = layers[0].self_attn.head_dim
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"rotary positions on {rope['partial_rotary_factor']} of each head: expected all of it")
    first = layers[0]
    return Layout(
        family=family,
        hidden=config.hidden_size,
        head_dim=head_dim,
        heads=tuple(layer.self_attn.q_proj.out_features // head_dim for layer in layers),
        kv_heads=tuple(layer.self_attn.k_proj.out_features // head_dim for layer in layers),
        channels=tuple(layer.mlp.gate_proj.out_features for layer in layers),
        biases=frozenset(path for path in LINEARS if first.get_submodule(path).bias is not None),
        loose_biases=bool(getattr(config, "pruneengine_biases", None)),
        query_norms=hasattr(first.self_attn, "q_norm"),
        rope=rope.get("rope_type", "default"),
        window=_window(config),
        activation=config.hidden_act,
    )


def _window(config) -> int | None:
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    sliding = window is not None and (kinds is None or "sliding_attention" in kinds)
    return window if sliding and window < config.max_position_embeddings else None
