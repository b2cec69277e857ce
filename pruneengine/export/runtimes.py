"""Which programs open a model of a given layout, as it is or exported, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pruneengine.export.layout import ModelShape

ATTENTION_INPUTS = frozenset(f"self_attn.{name}_proj" for name in "qkv")


@dataclass(frozen=True)
class Runtime:
    """One way to open a model.

    Attributes:
        name: the program.
        how: what to do with the checkpoint: "as it is", or the export it takes.
        opens: whether the program opens the result; None where that is not known.
        why: what makes it possible, or impossible.
    """

    name: str
    how: str
    opens: bool | None
    why: str


def gguf_architecture(layout: ModelShape) -> str:
    """llama.cpp's architecture for a layout: "llama", "deci" (widths of its own a layer), "qwen2" or "qwen3".

    llama.cpp's "qwen2" takes no head count that leaves the hidden size; such a model is a "llama" with biases.

    Raises:
        ValueError: none of them computes this model, with the reason.
    """
    if layout.unlike_llama:
        raise ValueError(f"what is written is computed as a Llama, which this is not: {layout.unlike_llama}")
    if layout.activation != "silu":
        raise ValueError(f"llama.cpp has these architectures with the activation silu, not {layout.activation!r}")
    if layout.rope not in ("default", "linear", "llama3"):
        raise ValueError(f"rotary positions of type {layout.rope!r} are not written")
    if layout.query_norms:
        if not layout.uniform:
            raise ValueError("layers differ in width, and llama.cpp's deci has no norms of queries and keys")
        if layout.biases or layout.rope != "default":
            raise ValueError("llama.cpp's qwen3 has no biases and no scaled positions")
        return "qwen3"
    if not layout.uniform:
        return "deci"
    if (
        layout.family == "qwen2"
        and _heads_fill_hidden(layout)
        and layout.biases == ATTENTION_INPUTS
        and layout.rope == "default"
    ):
        return "qwen2"
    return "llama"


def _heads_fill_hidden(layout: ModelShape) -> bool:
    return layout.heads[0] * layout.head_dim == layout.hidden


def check_deci(layout: ModelShape) -> None:
    """ValueError if a DeciLM checkpoint with ``block_configs`` cannot hold this model, with the reason."""
    if layout.unlike_llama:
        raise ValueError(f"DeciLM is a Llama, which this is not: {layout.unlike_llama}")
    if layout.activation != "silu":
        raise ValueError(f"DeciLM's MLP has the activation silu, not {layout.activation!r}")
    if layout.query_norms:
        raise ValueError("DeciLM has no norms of queries and keys")
    if layout.rope == "longrope":
        raise ValueError("rotary positions of type 'longrope' are not written: they read more of the config")


def check_pad(layout: ModelShape) -> None:
    """ValueError if there is nothing to pad, or padding does not suffice for a plain loader, with the reason."""
    if layout.uniform and not layout.unsaved_kinds:
        raise ValueError("every layer has the same width already: there is nothing to pad")
    if layout.experts:
        raise ValueError("experts are not padded")
    widest = {name: (max(getattr(layout, name)),) * len(layout.heads) for name in ("heads", "kv_heads", "channels")}
    if reason := replace(layout, unsaved_kinds=(), **widest).not_plain:
        raise ValueError(f"padded, it would still need the modelling file: {reason}")


def runtimes(layout: ModelShape) -> tuple[Runtime, ...]:
    """Every known way to open a checkpoint of this layout, the plainest first."""
    reason = layout.not_plain
    found = [
        Runtime("transformers", "as it is", reason is None, reason or "proved after every save"),
        Runtime(
            "transformers, trust_remote_code=True", "as it is", True,
            "the modelling file is in the checkpoint; proved" if reason else "nothing more is needed",
        ),
        _vllm(layout),
        _llama_cpp(layout),
        _deci(layout),
    ]  # fmt: skip
    if not layout.uniform or layout.unsaved_kinds:
        found.append(_pad(layout))
    return tuple(found)


def _vllm(layout: ModelShape) -> Runtime:
    if layout.not_plain:
        return Runtime("vLLM", "as it is", False, layout.not_plain)
    if layout.unlike_llama:
        # Some of its classes take hidden size over heads for a head's size, or 4 times the hidden size for the MLP.
        return Runtime("vLLM", "as it is", None, "if its class of this family reads these widths from the config")
    if layout.family == "qwen2" and not _heads_fill_hidden(layout):
        return Runtime("vLLM", "as it is", None, "if its Qwen2 reads head_dim from the config; not all versions do")
    return Runtime("vLLM", "as it is", True, "the same files as transformers; not run here")


def _llama_cpp(layout: ModelShape) -> Runtime:
    how = "export --format gguf"
    try:
        architecture = gguf_architecture(layout)
    except ValueError as error:
        return Runtime("llama.cpp", how, False, str(error))
    return Runtime(
        "llama.cpp",
        how,
        True,
        f"architecture {architecture}; the file is read back, and run where llama-cpp-python is installed",
    )


def _deci(layout: ModelShape) -> Runtime:
    name, how = "vLLM (DeciLM, trust_remote_code)", "export --format deci"
    try:
        check_deci(layout)
    except ValueError as error:
        return Runtime(name, how, False, str(error))
    return Runtime(name, how, True, "block_configs give each layer's widths; not run here")


def _pad(layout: ModelShape) -> Runtime:
    name, how = "any that opens the unpruned model", "export --format pad"
    try:
        check_pad(layout)
    except ValueError as error:
        return Runtime(name, how, False, str(error))
    goal = "the unpruned model's width" if layout.unsaved_kinds else "the widest layer"
    return Runtime(name, how, True, f"zeros up to {goal}: the same function, larger; proved")
