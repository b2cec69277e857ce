"""Runtimes: the programs that open a model of a given shape, unchanged or exported, and the reasons of the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pruneengine.common.errors import InputError
from pruneengine.export.model_shape import ModelShape

ATTENTION_INPUTS = frozenset(f"self_attn.{name}_proj" for name in "qkv")


@dataclass(frozen=True)
class Runtime:
    """One program and one way to open a model with it.

    Attributes:
        name: the program.
        how: treatment of the checkpoint: "as it is", or the necessary export.
        opens: whether the program opens the result; None if that is not known.
        why: reason why it does or does not.
    """

    name: str
    how: str
    opens: bool | None
    why: str


def gguf_architecture(shape: ModelShape) -> str:
    """Return llama.cpp's architecture for a shape: "llama", "deci" (per-layer widths), "qwen2" or "qwen3".

    llama.cpp's "qwen2" needs heads that fill the hidden size; a model with other head counts is a "llama" with biases.

    Raises:
        ValueError: none of these architectures computes this model, with the reason.
    """
    if shape.unlike_llama:
        raise InputError(f"what is written is computed as a Llama, which this is not: {shape.unlike_llama}")
    if shape.activation != "silu":
        raise InputError(f"llama.cpp has these architectures with the activation silu, not {shape.activation!r}")
    if shape.rope not in ("default", "linear", "llama3"):
        raise InputError(f"rotary positions of type {shape.rope!r} are not written")
    if shape.query_norms:
        if not shape.uniform:
            raise InputError("layers differ in width, and llama.cpp's deci has no norms of queries and keys")
        if shape.biases or shape.rope != "default":
            raise InputError("llama.cpp's qwen3 has no biases and no scaled positions")
        return "qwen3"
    if not shape.uniform:
        return "deci"
    if (
        shape.family == "qwen2"
        and _heads_fill_hidden(shape)
        and shape.biases == ATTENTION_INPUTS
        and shape.rope == "default"
    ):
        return "qwen2"
    return "llama"


def _heads_fill_hidden(shape: ModelShape) -> bool:
    return shape.heads[0] * shape.head_dim == shape.hidden


def check_deci(shape: ModelShape) -> None:
    """Raise ValueError, with the reason, if a DeciLM checkpoint with ``block_configs`` cannot hold this model."""
    if shape.unlike_llama:
        raise InputError(f"DeciLM is a Llama, which this is not: {shape.unlike_llama}")
    if shape.activation != "silu":
        raise InputError(f"DeciLM's MLP has the activation silu, not {shape.activation!r}")
    if shape.query_norms:
        raise InputError("DeciLM has no norms of queries and keys")
    if shape.rope == "longrope":
        raise InputError("rotary positions of type 'longrope' are not written: they read more of the config")


def check_pad(shape: ModelShape) -> None:
    """Raise ValueError, with the reason, if there is nothing to pad or a plain loader would refuse the padded model."""
    if shape.uniform and not shape.unsaved_kinds:
        raise InputError("every layer has the same width already: there is nothing to pad")
    if shape.experts:
        raise InputError("experts are not padded")
    heads, kv_heads, channels = (
        (max(widths),) * len(widths) for widths in (shape.heads, shape.kv_heads, shape.channels)
    )
    padded = replace(shape, heads=heads, kv_heads=kv_heads, channels=channels, unsaved_kinds=())
    if reason := padded.not_plain:
        raise InputError(f"padded, it would still need the modelling file: {reason}")


def runtimes(shape: ModelShape) -> tuple[Runtime, ...]:
    """Return every known way to open a checkpoint of this shape, the plainest first."""
    reason = shape.not_plain
    ways = [
        Runtime("transformers", "as it is", reason is None, reason or "proved after every save"),
        Runtime(
            "transformers, trust_remote_code=True", "as it is", True,
            "the modelling file is in the checkpoint; proved" if reason else "nothing more is needed",
        ),
        _vllm(shape),
        _llama_cpp(shape),
        _deci(shape),
    ]  # fmt: skip
    if not shape.uniform or shape.unsaved_kinds:
        ways.append(_pad(shape))
    return tuple(ways)


def _vllm(shape: ModelShape) -> Runtime:
    if shape.not_plain:
        return Runtime("vLLM", "as it is", False, shape.not_plain)
    if shape.unlike_llama:
        # Some of its classes take hidden size over heads for a head's size, or 4 times the hidden size for the MLP.
        return Runtime("vLLM", "as it is", None, "if its class of this family reads these widths from the config")
    if shape.family == "qwen2" and not _heads_fill_hidden(shape):
        return Runtime("vLLM", "as it is", None, "if its Qwen2 reads head_dim from the config; not all versions do")
    return Runtime("vLLM", "as it is", True, "the same files as transformers; not run here")


def _llama_cpp(shape: ModelShape) -> Runtime:
    how = "export --format gguf"
    try:
        architecture = gguf_architecture(shape)
    except ValueError as error:
        return Runtime("llama.cpp", how, False, str(error))
    return Runtime(
        "llama.cpp",
        how,
        True,
        f"architecture {architecture}; the file is read back, and run where llama-cpp-python is installed",
    )


def _deci(shape: ModelShape) -> Runtime:
    name, how = "vLLM (DeciLM, trust_remote_code)", "export --format deci"
    try:
        check_deci(shape)
    except ValueError as error:
        return Runtime(name, how, False, str(error))
    return Runtime(name, how, True, "block_configs give each layer's widths; not run here")


def _pad(shape: ModelShape) -> Runtime:
    name, how = "any that opens the unpruned model", "export --format pad"
    try:
        check_pad(shape)
    except ValueError as error:
        return Runtime(name, how, False, str(error))
    goal = "the unpruned model's width" if shape.unsaved_kinds else "the widest layer"
    return Runtime(name, how, True, f"zeros up to {goal}: the same function, larger; proved")
