"""Fused methods: two scores of the same units, blended into one. HyWIA is the only one so far.

Of HyWIA (Liu et al., AAAI 2025, arXiv 2403.10799) we know the abstract: coarse (structured) and fine (unstructured)
importance come from the same gradients, and attention blends them. What attends to what, how scores are normalised and
how they are compared between layers is ours, and fixed blends are there to test it against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.model import Group
from pruneengine.structured.scores.hywia_attention import LearnedAttention, features
from pruneengine.structured.scores.metrics import METRICS, get_metric

VARIANTS = ("a", "b", "c")


@dataclass(frozen=True)
class Fusion:
    """A fused method and the metrics it blends."""

    name: str
    coarse: str
    fine: str
    summary: str


FUSIONS = {"hywia": Fusion("hywia", "vectorize", "param_first", "Coarse and fine Taylor scores, blended by attention.")}


@dataclass(frozen=True)
class HyWIA:
    """Options of blending coarse and fine scores.

    Attributes:
        variant: "a": a group's two vectors of normalised scores attend to each other, and all its units get one blend.
            "b": every unit weighs its own two scores. "c": a :class:`LearnedAttention`, fitted by
            :mod:`pruneengine.structured.scores.hywia_fit`.
        temperature: softmax temperature; near 0 the softmax picks one score, towards infinity it takes their mean.
        blend: a fixed share of the fine score in [0, 1] for every unit, in place of attention.
        attention: the fitted weights of variant "c".
    """

    variant: str = "b"
    temperature: float = 1.0
    blend: float | None = None
    attention: LearnedAttention | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError(f"unknown hywia variant {self.variant!r}; choose from {', '.join(VARIANTS)}")
        numbers = {"temperature": self.temperature} | ({} if self.blend is None else {"blend": self.blend})
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputTypeError(f"hywia {name} must be a number, got {value!r}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"hywia temperature must be positive and finite, got {self.temperature}")
        if self.blend is not None and not 0 <= self.blend <= 1:
            raise InputError(f"hywia blend must lie in [0, 1], got {self.blend}")

    @property
    def fitted(self) -> bool:
        """True if the blend is learned, so that :attr:`attention` is needed."""
        return self.variant == "c" and self.blend is None


@dataclass(frozen=True)
class Blend:
    """The parts of a blend per group: the two float32 scores and the fine score's float64 share, ``[units]`` each."""

    coarse: dict[str, Tensor]
    fine: dict[str, Tensor]
    share: dict[str, Tensor]


def methods() -> tuple[str, ...]:
    """Return every name that a method may have."""
    return (*METRICS, *FUSIONS)


def needs_of(method: str) -> frozenset[str]:
    """Return the quantities of the statistics that a method reads.

    Raises:
        ValueError: an unknown method; the message lists the known ones.
    """
    if not isinstance(method, str) or method not in {*FUSIONS, *METRICS}:
        raise InputError(f"unknown method {method!r}; choose from {', '.join(methods())}")
    if method in FUSIONS:
        fusion = FUSIONS[method]
        return get_metric(fusion.coarse).needs | get_metric(fusion.fine).needs
    return get_metric(method).needs


def fuse(
    coarse: Mapping[str, Tensor], fine: Mapping[str, Tensor], groups: Sequence[Group], layers: int, options: HyWIA
) -> tuple[dict[str, Tensor], Blend]:
    """Blend two scores of every group: ``(1 - a) * c / mean(c) + a * f / mean(f)``, a the fine score's share.

    Within a group both scores are scaled to unit mean, because the fine one is never smaller and would drown the coarse
    one. For allocations that compare groups, the factor ``(mean(c) / C)^(1 - a) * (mean(f) / F)^a`` brings the scale
    back, with C and F the means over the model and a the group's mean share. So a share of 0 or 1 everywhere gives the
    coarse or fine scores themselves, and a factor on all coarse or all fine scores changes no order. Where one of the
    two is zero throughout a group, a share between 0 and 1 goes to the other.

    Args:
        coarse: non-negative float32 ``[units]`` per group name.
        fine: non-negative float32 ``[units]`` per group name.
        groups: the groups that are scored.
        layers: number of decoder layers of the model.
        options: variant, temperature and share.

    Returns:
        float64 scores per group name, and the parts of the blend.

    Raises:
        ValueError: variant "c" without its fitted weights.
    """
    shares = {g.name: _share(coarse[g.name].double(), fine[g.name].double(), g, layers, options) for g in groups}
    return blend_scores(coarse, fine, shares, groups), Blend(dict(coarse), dict(fine), shares)


def blend_scores(
    coarse: Mapping[str, Tensor], fine: Mapping[str, Tensor], shares: Mapping[str, Tensor], groups: Sequence[Group]
) -> dict[str, Tensor]:
    """Blend two scores as :func:`fuse`, by known shares of the fine score, float64 ``[units]`` per group name."""
    means = {g.name: (float(coarse[g.name].double().mean()), float(fine[g.name].double().mean())) for g in groups}
    mean_share = {name: float(share.mean()) for name, share in shares.items()}
    whole = sum(mean_share.values()) / max(1, len(mean_share))
    units = sum(g.units for g in groups)
    model = [sum(means[g.name][part] * g.units for g in groups) / max(1, units) for part in (0, 1)]
    blended = {}
    for group in groups:
        share, (c, f), a = shares[group.name], means[group.name], mean_share[group.name]
        unit_mean = (1 - share) * normalise(coarse[group.name]) + share * normalise(fine[group.name])
        # One factor for the whole model, C^(1 - whole) * F^whole, keeps the scores in the units they came in.
        drift = _power(model[0], a - whole) * _power(model[1], whole - a)
        blended[group.name] = unit_mean * c ** (1 - a) * f**a * drift
    return blended


def fixed_share(coarse: Tensor, fine: Tensor, share: float) -> Tensor:
    """Return one share of the fine score for all units of a group, float64 ``[units]``.

    Where one of the two scores is zero throughout, a share between 0 and 1 goes to the other.
    """
    dead = [not bool(part.any()) for part in (coarse, fine)]
    if share not in (0, 1) and any(dead):
        share = 0.5 if all(dead) else float(dead[0])
    return torch.full_like(coarse, share, dtype=torch.float64)


def normalise(scores: Tensor) -> Tensor:
    """Scale the scores of one group to unit mean, float64; zeros stay zeros."""
    scores = scores.double()
    mean = scores.mean()
    return scores / mean if mean > 0 else torch.zeros_like(scores)


def group_features(coarse: Tensor, fine: Tensor, group: Group, layers: int) -> tuple[Tensor, Tensor]:
    """Return the features of a group's normalised scores for :class:`LearnedAttention`, for a fit and for a blend."""
    return features(coarse, fine, group.kind, group.layer / max(1, layers - 1))


def _power(base: float, exponent: float) -> float:
    return base**exponent if base > 0 else 1.0


def _share(coarse: Tensor, fine: Tensor, group: Group, layers: int, options: HyWIA) -> Tensor:
    """Return the fine score's share of every unit: float64 ``[units]``."""
    if options.blend is not None:
        return fixed_share(coarse, fine, options.blend)
    if not (bool(coarse.any()) and bool(fine.any())):
        return fixed_share(coarse, fine, 0.5)
    coarse, fine = normalise(coarse), normalise(fine)
    if options.variant == "a":
        return _between_groups(coarse, fine, options.temperature).expand_as(coarse)
    if options.variant == "b":
        return _within_units(coarse, fine, options.temperature)
    if options.attention is None:
        raise InputError("hywia variant 'c' is fitted: call prune() with it, or pass what hywia_fit.fit returns")
    return options.attention.share(*group_features(coarse, fine, group, layers), options.temperature)


def _between_groups(coarse: Tensor, fine: Tensor, temperature: float) -> Tensor:
    """Return the share of variant a: the column mean of ``softmax(X X^T / (T sqrt(C)))``, X both scores ``[2, C]``."""
    tokens = torch.stack([coarse, fine])
    return _softmax(tokens @ tokens.T / math.sqrt(len(coarse)), temperature).mean(0)[1]


def _within_units(coarse: Tensor, fine: Tensor, temperature: float) -> Tensor:
    """Return the shares of variant b: each unit's query is the mean of its two tokens, its keys are the tokens."""
    tokens = torch.stack([coarse, fine], 1)
    return _softmax(tokens * tokens.mean(1, keepdim=True), temperature)[:, 1]


def _softmax(logits: Tensor, temperature: float) -> Tensor:
    """Compute a softmax over the last dimension; the peak is subtracted first, so that no temperature overflows."""
    return ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
