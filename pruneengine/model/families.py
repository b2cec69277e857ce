"""Paths and peculiarities of every known architecture: one entry per family.

No other module of the package names an architecture (``export`` knows those of other programs).
"""

from __future__ import annotations

from dataclasses import dataclass

from pruneengine.common.errors import InputError


@dataclass(frozen=True)
class Experts:
    """Experts of a layer, of which a router chooses some for every token: each an MLP of Llama's layout.

    Models of transformers keep experts fused, until :func:`unfuse_experts` has given each its own linears.

    Attributes:
        width_name, count_name, chosen_name: config names of an expert's channels, the experts of a layer, and the
            number of experts per token.
        saved: (pattern, replacement): names of tensors in a checkpoint that transformers opens plainly, from those of
            the model.
        path, router: paths of the list of experts and of their router, from a layer.
        fused: path of the dense model's fused experts, from a layer.
        mlp_in, mlp_out: linears of one expert.
    """

    width_name: str
    count_name: str
    saved: tuple[tuple[str, str], ...]
    chosen_name: str = "num_experts_per_tok"
    path: str = "mlp.expert"
    router: str = "mlp.gate"
    fused: str = "mlp.experts"
    mlp_in: tuple[str, ...] = ("gate_proj", "up_proj")
    mlp_out: str = "down_proj"


_MLP_OUT = "mlp.down_proj"


@dataclass(frozen=True)
class Family:
    """One architecture. Paths of linears are relative to one decoder layer.

    Attributes:
        model_types: ``config.model_type`` of the models that look like this.
        layers, final_norm: paths from the model.
        query, key, value: the same path three times where one linear gives all three; see ``fused``.
        mlp_in: linears that read the MLP's input; the same path twice where one linear gives gate and up, one behind
            the other. Empty where all channels belong to experts that a router chooses from.
        mlp_out: the MLP's last linear; None where all channels belong to experts.
        experts: experts of a layer, or None.
        fused: layout of the rows of a shared query, key and value linear: "stacked" (all queries, all keys, all
            values) or "interleaved" (for every key-value head its queries, its key, its value).
        bias_flags: (config flag, linears that it gives a bias).
        heads_name, kv_heads_name, mlp_name: config names of the widths; None where the config has no say in a width
            and always builds the dense model's. Heads without a name keep their size in the config as well.
        counts: (attribute of a layer, "heads", "kv_heads" or "head_rows"): numbers that a layer's forward reads beside
            its weights; head_rows are the rows of all query heads together.
        layer_lists: config names of lists with one entry per layer.
        layer_gives_tuple: a layer returns a tuple that starts with the hidden states.
        rows_per_head: arguments of a layer with one row per sample and head, not per sample.
        parts_add_residual: attention and MLP return their output with the residual already added.
        whole_heads: (config attribute, its value, reason): the heads of a layer are one unit, and cannot be removed one
            by one, where the config says so. The attribute None holds for every model of the family.
        learned_positions: config name of the number of positions that have a learned vector, and so the longest window
            that the model can read; None where positions are computed.
        requires: (config attribute, its value, reason): models whose config says otherwise are refused.
        requires_modules: (path from the model, class, reason): models without such a module there are refused.
        unlike_llama: difference between its layers' function and Llama's although their linears are laid out as
            Llama's; None where the function is the same but for biases, norms of queries and keys, and a window.
        equivalent: a model type with Llama's linears that computes the same once fused linears are split, or None.
        own_class: transformers has a class for it; without one, it is saved as its equivalent.
        auto_class: the class of transformers that opens such a checkpoint.
    """

    model_types: tuple[str, ...]
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    attention_out: str = "self_attn.o_proj"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_out: str | None = _MLP_OUT
    experts: Experts | None = None
    fused: str = "stacked"
    bias_flags: tuple[tuple[str, tuple[str, ...]], ...] = ()
    heads_name: str | None = "num_attention_heads"
    kv_heads_name: str | None = "num_key_value_heads"
    mlp_name: str | None = "intermediate_size"
    counts: tuple[tuple[str, str], ...] = ()
    layer_lists: tuple[str, ...] = ("layer_types",)
    layer_gives_tuple: bool = False
    rows_per_head: tuple[str, ...] = ()
    parts_add_residual: bool = False
    whole_heads: tuple[str | None, object, str] | None = None
    learned_positions: str | None = None
    requires: tuple[tuple[str, object, str], ...] = ()
    requires_modules: tuple[tuple[str, str, str], ...] = ()
    unlike_llama: str | None = None
    equivalent: str | None = None
    own_class: bool = True
    auto_class: str = "AutoModelForCausalLM"

    def bias_flag(self, linear: str) -> tuple[str | None, tuple[str, ...]]:
        """Return the config flag that gives a linear its bias, and all linears under that flag.

        Without a flag: None and the linear itself.
        """
        return next(((flag, paths) for flag, paths in self.bias_flags if linear in paths), (None, (linear,)))

    @property
    def kinds_without_config_name(self) -> tuple[str, ...]:
        """The kinds whose widths can change although the config has no name for them."""
        whole = self.whole_heads is not None and self.whole_heads[0] is None
        names = {"heads": self.heads_name or whole, "mlp": self.mlp_name}
        return tuple(kind for kind, name in names.items() if not name)

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of a layer's linears but its experts', each once, in the order in which they are read."""
        paths = (self.query, self.key, self.value, self.attention_out, *self.mlp_in, self.mlp_out)
        return tuple(path for path in dict.fromkeys(paths) if path)

    def mlps(self, experts: int) -> tuple[tuple[str, tuple[str, ...], str], ...]:
        """Return (name prefix, input linears, output linear) of each MLP in a layer with that number of experts."""
        mlps = [("", self.mlp_in, self.mlp_out)] if self.mlp_out else []
        if self.experts is not None:
            for index in range(experts):
                expert = f"{self.experts.path}.{index}"
                inputs = tuple(f"{expert}.{path}" for path in self.experts.mlp_in)
                mlps.append((f"experts.{index}.", inputs, f"{expert}.{self.experts.mlp_out}"))
        return tuple(mlps)

    @property
    def by_widths(self) -> bool:
        """True where the widths of a layer say all about it, as in Llama's layout."""
        return self.experts is None and self.linears == Family(()).linears


_ATTENTION_BIAS = ("attention_bias", (Family.query, Family.key, Family.value, Family.attention_out))
_MLP_BIAS = ("mlp_bias", (*Family.mlp_in, _MLP_OUT))

_ALIBI = "gives every layer one slope for each of the dense model's heads (ALiBi)"

FAMILIES = (
    Family(model_types=("llama",), bias_flags=(_ATTENTION_BIAS, _MLP_BIAS)),
    Family(model_types=("mistral", "qwen2")),
    Family(model_types=("qwen3",), bias_flags=(_ATTENTION_BIAS,)),
    Family(
        model_types=("gemma", "gemma2", "gemma3_text"),
        bias_flags=(_ATTENTION_BIAS,),
        unlike_llama="norms multiply by one plus their weight, and embeddings are scaled",
    ),
    Family(
        model_types=("granite",),
        bias_flags=(_ATTENTION_BIAS, _MLP_BIAS),
        unlike_llama="multipliers of its own scale embeddings, attention, residuals and logits",
    ),
    Family(
        model_types=("mixtral",),
        mlp_in=(),
        mlp_out=None,
        experts=Experts(
            width_name="intermediate_size",
            count_name="num_local_experts",
            saved=(
                (r"\.mlp\.gate\.", ".block_sparse_moe.gate."),
                (r"\.mlp\.expert\.(\d+)\.gate_proj\.", r".block_sparse_moe.experts.\1.w1."),
                (r"\.mlp\.expert\.(\d+)\.down_proj\.", r".block_sparse_moe.experts.\1.w2."),
                (r"\.mlp\.expert\.(\d+)\.up_proj\.", r".block_sparse_moe.experts.\1.w3."),
            ),
        ),
    ),
    Family(
        model_types=("qwen2_moe",),
        mlp_in=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        mlp_out="mlp.shared_expert.down_proj",
        mlp_name="shared_expert_intermediate_size",
        experts=Experts(
            width_name="moe_intermediate_size",
            count_name="num_experts",
            saved=((r"\.mlp\.expert\.", ".mlp.experts."),),
        ),
    ),
    Family(
        model_types=("qwen3_moe",),
        bias_flags=(_ATTENTION_BIAS,),
        mlp_in=(),
        mlp_out=None,
        experts=Experts(
            width_name="moe_intermediate_size",
            count_name="num_experts",
            saved=((r"\.mlp\.expert\.", ".mlp.experts."),),
        ),
    ),
    Family(
        model_types=("smollm3",),
        bias_flags=(_ATTENTION_BIAS, _MLP_BIAS),
        layer_lists=("layer_types", "no_rope_layers"),
        unlike_llama="some layers have no rotary positions",
    ),
    Family(
        model_types=("llava",),
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
        auto_class="AutoModelForImageTextToText",
        unlike_llama="the language model is a part of one that sees, and cannot be written alone",
    ),
    Family(
        model_types=("baichuan",),
        query="self_attn.W_pack",
        key="self_attn.W_pack",
        value="self_attn.W_pack",
        kv_heads_name=None,
        counts=(("self_attn.num_heads", "heads"), ("self_attn.hidden_size", "head_rows")),
        layer_gives_tuple=True,
        requires_modules=(
            ("model.layers.0.self_attn.rotary_emb", "Module", f"Baichuan-13B {_ALIBI}"),
            ("lm_head", "Linear", "the head of Baichuan 2 normalises its weights"),
        ),
        equivalent="llama",
        own_class=False,
    ),
    Family(
        model_types=("phi",),
        final_norm="model.final_layernorm",
        attention_out="self_attn.dense",
        mlp_in=("mlp.fc1",),
        mlp_out="mlp.fc2",
    ),
    Family(
        model_types=("phi3",),
        query="self_attn.qkv_proj",
        key="self_attn.qkv_proj",
        value="self_attn.qkv_proj",
        mlp_in=("mlp.gate_up_proj", "mlp.gate_up_proj"),
        counts=(("self_attn.num_key_value_heads", "kv_heads"), ("self_attn.config.num_attention_heads", "heads")),
        equivalent="mistral",
    ),
    Family(
        model_types=("opt",),
        layers="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        attention_out="self_attn.out_proj",
        mlp_in=("fc1",),
        mlp_out="fc2",
        heads_name=None,
        kv_heads_name=None,
        mlp_name="ffn_dim",
        counts=(("self_attn.num_heads", "heads"),),
        learned_positions="max_position_embeddings",
        requires=(("do_layer_norm_before", True, "it has no norm behind the last layer (OPT-350m)"),),
    ),
    Family(
        model_types=("gpt_neox",),
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        query="attention.query_key_value",
        key="attention.query_key_value",
        value="attention.query_key_value",
        attention_out="attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        fused="interleaved",
        heads_name=None,
        kv_heads_name=None,
    ),
    Family(
        model_types=("bloom",),
        layers="transformer.h",
        final_norm="transformer.ln_f",
        query="self_attention.query_key_value",
        key="self_attention.query_key_value",
        value="self_attention.query_key_value",
        attention_out="self_attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        fused="interleaved",
        heads_name=None,
        kv_heads_name=None,
        mlp_name=None,
        layer_gives_tuple=True,
        rows_per_head=("alibi",),
        parts_add_residual=True,
        whole_heads=(None, None, f"the model {_ALIBI}"),
    ),
    Family(
        model_types=("falcon",),
        layers="transformer.h",
        final_norm="transformer.ln_f",
        query="self_attention.query_key_value",
        key="self_attention.query_key_value",
        value="self_attention.query_key_value",
        attention_out="self_attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_out="mlp.dense_4h_to_h",
        fused="interleaved",
        heads_name=None,
        kv_heads_name=None,
        mlp_name="ffn_hidden_size",
        counts=(("self_attention.num_heads", "heads"), ("self_attention.num_kv_heads", "kv_heads")),
        layer_gives_tuple=True,
        rows_per_head=("alibi",),
        whole_heads=("alibi", True, f"a model with alibi=True {_ALIBI}"),
    ),
)

# transformers refuses a number of heads that does not divide the hidden size in configs of the first type, even with
# head_dim given. The other type takes any number and computes the same function, but has no biases.
EVEN_HEADS_TYPE = "llama"
ANY_HEADS_TYPE, ANY_HEADS_CLASS = "mistral", "MistralForCausalLM"


def auto_class(model_type: str | None) -> str:
    """Return the class of transformers that opens models of a type, also of one without an entry."""
    return next((f.auto_class for f in FAMILIES if model_type in f.model_types), Family.auto_class)


def learned_positions(model_type: str | None) -> str | None:
    """Return the config name of a model type's number of learned positions; None where it has none or is unknown."""
    return next((f.learned_positions for f in FAMILIES if model_type in f.model_types), None)


def family_of(model_type: str | None, class_name: str) -> Family:
    """Return the entry of a model type; ValueError with the known types where there is none."""
    family = next((f for f in FAMILIES if model_type in f.model_types), None)
    if family is None:
        known = ", ".join(t for f in FAMILIES for t in f.model_types)
        raise InputError(f"unknown architecture {model_type!r} ({class_name}): looked for config.model_type in {known}")
    return family
