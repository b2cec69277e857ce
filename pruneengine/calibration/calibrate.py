"""Collection of :class:`Statistics` in one pass of the calibration text through the model.

Activations need a forward pass. The signed quantity also needs a backward pass, but with frozen weights: at a linear
``y = x W^T`` the row sums of ``W * dL/dW`` are ``sum_t y * dL/dy`` and the column sums ``sum_t x * dL/dx``, so no
gradient of a weight ever exists. The elementwise quantities are left to :mod:`pruneengine.calibration.layer_backward`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine import ops
from pruneengine.calibration.layer_backward import backward_by_layer
from pruneengine.calibration.recorder import Recorder
from pruneengine.calibration.statistics import QUANTITIES, Statistics, checked_subsets
from pruneengine.common.errors import InputError
from pruneengine.common.progress import track
from pruneengine.data.samples import Samples, as_samples
from pruneengine.model import KINDS, Group, Structure, distinct_linears, find_groups, get_linear, model_fingerprint
from pruneengine.model.checks import check_positions, check_prunable
from pruneengine.model.decoder import causal_parts, frozen, hidden_states
from pruneengine.model.loss import token_nll, token_nll_backward

ACTIVATIONS = frozenset({"sum", "squares", "tokens"})
SIGNED = frozenset({"signed"})
ELEMENTWISE = frozenset(QUANTITIES) - ACTIVATIONS - SIGNED

InputHook = Callable[[nn.Module, tuple[Any, ...]], None]

# Squares of half-precision gradients underflow without it (float16 ends at 6e-8); float32 and bfloat16 reach 1e-38.
_LOSS_SCALE = {torch.float16: 2.0**12}


def calibrate(
    model: nn.Module,
    batches: Samples | Tensor | Sequence[Tensor],
    quantities: Iterable[str] = ("sum", "squares"),
    *,
    structure: Structure | None = None,
    kinds: Collection[str] = KINDS,
    layers: range | None = None,
    batch_size: int = 8,
    losses: bool = False,
    subsets: Mapping[str, Sequence[int]] | None = None,
) -> Statistics:
    """Collect statistics of a dense model on calibration samples.

    The model is left as it was: its weights, their ``requires_grad`` and its training mode.

    Args:
        model: a causal language model that :func:`find_groups` knows.
        batches: token ids, int64 ``[N, L]`` (or several such tensors of one length L).
        quantities: names from :data:`pruneengine.calibration.statistics.QUANTITIES`.
        structure: the model's structure, when it is at hand.
        kinds: kinds of units that will be pruned; without "layers", members of other kinds are left out.
        layers: collect for these decoder layers only; gradients stop at the first of them.
        batch_size: samples per forward pass; the result does not depend on it beyond float32 rounding.
        losses: compute the loss of each sample even where no quantity needs it.
        subsets: sets of samples by name, for :meth:`Statistics.of_subset`; quantities that are not additive over
            samples are also collected for each set. That takes memory for one layer's inputs and output gradients of
            all samples, and no more than a quarter of a GiB of sums at a time.

    Raises:
        ValueError: an unknown quantity, a subset that is empty, repeats a sample or names one that is not there, no
            layers, samples of fewer than two tokens or with token ids outside the vocabulary, or weights, activations
            or gradients that are not finite (the message names the first place).
    """
    chosen = _checked(quantities)
    samples = as_samples(batches)
    subsets = checked_subsets(subsets or {}, len(samples))
    if samples.tokens.shape[1] < 2 and (losses or chosen - ACTIVATIONS):
        raise InputError(f"samples have {samples.tokens.shape[1]} token(s); a loss needs at least 2")
    structure = structure or find_groups(model)
    check_tokens(model, structure, samples)
    layers = layers if layers is not None else range(structure.num_layers)
    if not len(layers):
        raise InputError(
            f"layers {layers.start}:{layers.stop} hold no layer; expected some of 0:{structure.num_layers}"
        )
    groups = structure.scored(kinds, layers)
    device = next(model.parameters()).device
    recorder = Recorder(len(samples), list(subsets.values()))
    scale = _LOSS_SCALE.get(next(model.parameters()).dtype, 1.0)
    starts = range(0, len(samples), batch_size)
    pieces = [
        (slice(s, min(s + batch_size, len(samples))), samples.tokens[s : s + batch_size].to(device)) for s in starts
    ]
    check_weights(model)
    with frozen(model):
        if chosen & ELEMENTWISE:
            loss = backward_by_layer(
                model, structure, groups, pieces, recorder, chosen & ELEMENTWISE, layers, scale,
                lambda layer: _recording(model, structure, groups, recorder, chosen, range(layer, layer + 1), scale),
            )  # fmt: skip
        else:
            with _recording(model, structure, groups, recorder, chosen, layers, scale):
                loss = _one_pass(model, structure, pieces, recorder, bool(chosen & SIGNED), losses, layers, scale)
    tensors = recorder.finish()
    _check_finite(tensors)
    _check_finite(recorder.of_subsets)
    return Statistics(
        tensors=tensors,
        num_samples=len(samples),
        tokens_per_sample=samples.tokens.shape[1],
        model=model_fingerprint(model),
        data=samples.hash,
        loss=loss,
        subsets=subsets,
        of_subsets=recorder.of_subsets,
    )


def _checked(quantities: Iterable[str]) -> frozenset[str]:
    names = frozenset(quantities)
    if unknown := names - QUANTITIES.keys():
        raise InputError(f"unknown quantity {sorted(unknown)[0]!r}; choose from {', '.join(QUANTITIES)}")
    return names


@contextlib.contextmanager
def _recording(
    model: nn.Module,
    structure: Structure,
    groups: tuple[Group, ...],
    recorder: Recorder,
    quantities: frozenset[str],
    layers: range,
    scale: float,
) -> Iterator[None]:
    """Write activations and gradients of the given layers to the recorder within the context."""
    with contextlib.ExitStack() as hooks:
        if quantities & ACTIVATIONS:
            prefixes = tuple(f"layers.{i}." for i in layers)
            for site in structure.sites:
                if site.name.startswith(prefixes):
                    # Sums over an expert's tokens mean nothing without their number.
                    counted = ".experts." in site.name and bool(quantities & {"sum", "tokens"})
                    hook = _activation_hook(recorder, site.name, quantities, counted)
                    hooks.enter_context(get_linear(model, site.module).register_forward_pre_hook(hook))
        if quantities & SIGNED:
            for member in distinct_linears(m for g in groups if g.layer in layers for m in g.members):
                linear = get_linear(model, member.module)
                if member.axis == 0:
                    hooks.enter_context(linear.register_forward_hook(_output_gate_hook(recorder, member.module, scale)))
                else:
                    hooks.enter_context(
                        linear.register_forward_pre_hook(_input_gate_hook(recorder, member.module, scale))
                    )
        yield


def _activation_hook(recorder: Recorder, name: str, quantities: frozenset[str], counted: bool) -> InputHook:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        x = recorder.by_sample(args[0].detach())
        total, squares, _peak = ops.activation_stats(x)
        if counted:
            recorder.write("tokens", name, x.any(-1).sum(1, keepdim=True).float())
        for quantity, values in (("sum", total), ("squares", squares)):
            if quantity in quantities:
                recorder.write(quantity, name, values)

    return hook


def _input_gate_hook(recorder: Recorder, name: str, scale: float) -> InputHook:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].requires_grad:
            # Not the tensor itself: a hook that holds its own tensor keeps the whole graph alive for good.
            x = args[0].detach()

            def on_gradient(dx: Tensor) -> None:
                scores = ops.gate_scores(recorder.by_sample(x), recorder.by_sample(dx))
                recorder.write("signed", name, scores / scale)

            args[0].register_hook(on_gradient)

    return hook


def _output_gate_hook(
    recorder: Recorder, name: str, scale: float
) -> Callable[[nn.Linear, tuple[Any, ...], Tensor], None]:
    def hook(linear: nn.Linear, _args: tuple[Any, ...], output: Tensor) -> None:
        y = output.detach()

        def on_gradient(dy: Tensor) -> None:
            dy = recorder.by_sample(dy)
            scores = ops.gate_scores(recorder.by_sample(y), dy)
            if linear.bias is not None:
                # y holds the bias; the identity is about x W^T alone.
                scores -= linear.bias.float() * dy.sum(1, dtype=torch.float32)
            recorder.write("signed", name, scores / scale)

        if output.requires_grad:
            output.register_hook(on_gradient)

    return hook


def _one_pass(
    model: nn.Module,
    structure: Structure,
    pieces: list[tuple[slice, Tensor]],
    recorder: Recorder,
    backward: bool,
    losses: bool,
    layers: range,
    scale: float,
) -> Tensor:
    """Run every batch forward, and back for gradients; return the loss of each sample, or none.

    The recorder's hooks do the rest.
    """
    _, head, logit_options = causal_parts(model)
    loss = []
    first = model.get_submodule(structure.layer_path(layers[0]))
    with first.register_forward_pre_hook(_require_gradient) if backward else contextlib.nullcontext():
        for rows, tokens in track(pieces, "calibrate"):
            recorder.rows = rows
            with torch.set_grad_enabled(backward):
                predicting = hidden_states(model, tokens)[:, :-1]
            if backward:
                weight = scale / (tokens.shape[1] - 1)
                nll, gradient = token_nll_backward(predicting.detach(), head, tokens[:, 1:], weight, **logit_options)
                predicting.backward(gradient)
                loss.append(nll.mean(1).cpu())
            elif losses:
                loss.append(token_nll(predicting, head, tokens[:, 1:], **logit_options).mean(1).cpu())
    return torch.cat(loss) if loss else torch.empty(0)


def _require_gradient(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Start the graph, as a hook, at the first layer to record: layers before it stay free of gradients."""
    return (args[0].detach().requires_grad_(True), *args[1:])


def check_tokens(model: nn.Module, structure: Structure, samples: Samples) -> None:
    """Raise ValueError for samples that a model cannot read.

    Raises:
        ValueError: a token id outside the vocabulary, samples longer than the learned positions, or samples of one
            token where experts may idle.
    """
    check_positions(getattr(model, "config", None), {"samples": samples.tokens.shape[1]})
    if structure.family.experts is not None and samples.tokens.shape[1] < 2:
        raise InputError(
            f"samples have {samples.tokens.shape[1]} token(s); a mixture of experts needs at least 2, for it runs no "
            "idle expert where a text grows token by token"
        )
    causal: Any = model
    vocabulary = causal.get_input_embeddings().weight.shape[0]
    if samples.tokens.shape[1] and not 0 <= int(samples.tokens.min()) <= int(samples.tokens.max()) < vocabulary:
        worst = int(samples.tokens.max()) if int(samples.tokens.min()) >= 0 else int(samples.tokens.min())
        raise InputError(f"token id {worst}: expected 0 to {vocabulary - 1}, the model's vocabulary")


def check_weights(model: nn.Module) -> None:
    """Raise ValueError for weights that are not finite: one read of the weights, before a pass is spent."""
    check_prunable(model)
    for name, parameter in model.named_parameters():
        if not bool(torch.stack(parameter.detach().aminmax()).isfinite().all()):
            raise InputError(f"weights of {name} are not finite: they hold NaN or infinity")


def _check_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    for quantity, named in tensors.items():
        for name, tensor in named.items():
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"{quantity} of {name} is not finite: weights or activations hold NaN or infinity there, "
                    "or half-precision gradients overflow (load the model in float32)"
                )
