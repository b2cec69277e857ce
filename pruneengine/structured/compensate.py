"""Compensation of removed units: a bias, or refitted weights, of the linear that reads kept and removed units.

Let x be the input of an o_proj or down_proj with weight W, K its kept and R its removed channels.

- "bias": the mean of the missing output becomes a bias. On the dense model's inputs that is
  ``W_R mean(x_R)``, as in FLAP (An et al., AAAI 2024, arXiv 2312.11983), section 3.4.
- "least-squares": ``W_K + D``, where D minimises ``|missing - D x_K|^2 + ridge * mean(diag G) * |D|^2`` with
  ``G = X_K X_K^T``, so that D falls to zero (no change) as the ridge grows. The ridge, or no change at all, is chosen
  by the squared error on samples that the fit has not seen; then D is solved once more with all samples.

The missing output is ``W_R x_R``. "one-shot" reads x in the dense model, "sequential" behind the layers that are
already pruned and compensated. Neither makes up for the errors of earlier layers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruneengine.calibration.statistics import Statistics
from pruneengine.common.errors import InputError
from pruneengine.common.progress import track
from pruneengine.common.validation import require_choice
from pruneengine.data.samples import Tokens, as_samples
from pruneengine.model import Group, Structure, find_groups, get_linear, unit_slices
from pruneengine.model.decoder import inference
from pruneengine.model.layer_runner import LayerRunner
from pruneengine.structured.apply import Correction, mask
from pruneengine.structured.plan import Plan
from pruneengine.structured.ridge import Moments, solve

COMPENSATIONS = ("none", "bias", "least-squares")
MODES = ("one-shot", "sequential")
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class GroupFit:
    """The fit for one group.

    Attributes:
        group: name of the group.
        ridge: ridge of the refit, relative to the mean square of the kept inputs; None where nothing was refitted.
        before, after: squared error of the output on held-out samples, without compensation and with a compensation
            fitted to the other samples alone; relative to the squares of the dense linear's output.
    """

    group: str
    ridge: float | None
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Compensation:
    """Corrections per module path, as :func:`compact` takes them (on the CPU), with the method and fits behind them."""

    how: str
    mode: str
    corrections: dict[str, Correction]
    groups: tuple[GroupFit, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value with one row per group."""
        rows = [vars(group) for group in self.groups]
        return {"how": self.how, "mode": self.mode, "held-out error": rows}


def compensate(
    model: nn.Module,
    plan: Plan,
    batches: Tokens,
    how: str,
    *,
    structure: Structure | None = None,
    mode: str = "sequential",
    held_out: float = 0.25,
    batch_size: int = 8,
) -> Compensation:
    """Compute corrections, layer by layer, that make up for the units a plan removes; the model stays as it was.

    Memory besides the model: the hidden states of all samples, the sums of one layer's groups (float64, twice the
    square of the kept channels), and the corrections.

    Args:
        model: the dense model that the plan was made for.
        plan: the units that stay.
        batches: token ids, int64 ``[N, L]`` (or several such tensors of one length L).
        how: "bias", "least-squares", or "none" for no corrections.
        structure: the model's structure, if it is at hand.
        mode: "one-shot" or "sequential".
        held_out: fraction of the samples, spread evenly, on which errors are measured and ridges chosen; in (0, 1).
        batch_size: samples per forward pass.

    Raises:
        ValueError: an unknown choice, fewer than two samples, or inputs of a layer that are not finite.
    """
    structure = structure or find_groups(model)
    plan.check(structure)
    check_choice(how, mode)
    if not 0 < held_out < 1:
        raise InputError(f"held_out must lie in (0, 1), got {held_out}")
    if how == "none":
        return Compensation(how, mode, {}, ())
    samples = as_samples(batches)
    if len(samples) < 2:
        raise InputError("compensation needs at least 2 calibration samples, one of them held out; got 1")
    kept = min(len(samples) - 1, max(1, round(len(samples) * (1 - held_out))))
    # Evenly through the samples: a mix holds its sources one after the other.
    order = torch.arange(len(samples)) * kept // len(samples)
    new = torch.diff(order, prepend=order.new_tensor([-1])) > 0
    pieces = [[*part.split(batch_size)] for part in (samples.tokens[new], samples.tokens[~new])]
    with inference(model):
        walk = LayerRunner(model, structure, pieces[0] + pieces[1])
        fits = _Fits(model, structure, plan, how, walk, len(pieces[0]))
        (fits.one_shot if mode == "one-shot" else fits.sequential)()
    return Compensation(how, mode, fits.corrections, tuple(fits.groups), tuple(fits.warnings))


def check_choice(how: str, mode: str) -> None:
    """Raise ValueError if the compensation or the mode does not exist."""
    require_choice("compensation", how, COMPENSATIONS)
    require_choice("compensation mode", mode, MODES)


def channel_means(structure: Structure, statistics: Statistics) -> dict[str, Tensor]:
    """Return the mean input of o_proj and down_proj per group name, float32 ``[channels]``, from the statistic "sum".

    Passed to :func:`mask` as ``means``, they try "bias" in mode "one-shot" without a fit. Groups without collected
    statistics are left out (statistics may cover some kinds or layers only).
    """
    sites = {group.name: group.members[-1].site for group in structure.groups}
    collected = statistics.tensors.get("sum", {})
    return {
        name: statistics.mean("sum", site) / statistics.tokens(site)
        for name, site in sites.items()
        if site in collected
    }


def bias_corrections(
    model: nn.Module, structure: Structure, plan: Plan, means: dict[str, Tensor]
) -> dict[str, Correction]:
    """Return ``W_R mean(x_R)`` plus the present bias per module, as ``mask(model, plan, means=means)`` computes."""
    corrections = {}
    for group in structure.groups:
        if group.name in plan.keep and len(plan.keep[group.name]) < group.units:
            linear = get_linear(model, group.members[-1].module)
            _kept, removed = _columns(group, plan, linear.weight.device)
            weight = linear.weight.detach()[:, removed].double()
            missing = weight @ means[group.name].to(weight)[removed]
            corrections[group.members[-1].module] = _with_bias(linear, missing)
    return corrections


class _Fits:
    """Corrections of a plan, collected layer by layer."""

    def __init__(
        self, model: nn.Module, structure: Structure, plan: Plan, how: str, walk: LayerRunner, train: int
    ) -> None:
        self.model, self.structure, self.plan, self.how, self.walk = model, structure, plan, how, walk
        self.train = train  # batches before this one are fitted to, the others held out
        self.corrections: dict[str, Correction] = {}
        self.groups: list[GroupFit] = []
        self.warnings: list[str] = []
        narrowed = [g for g in structure.groups if g.name in plan.keep and len(plan.keep[g.name]) < g.units]
        # Heads come first: the MLP of a layer reads what its attention gives.
        self.of_layer = {i: [g for g in narrowed if g.layer == i] for i in range(structure.num_layers)}
        self.last = max((g.layer for g in narrowed), default=-1)

    def one_shot(self) -> None:
        """Fit all groups of a layer from one pass of the dense model."""
        hidden = self.walk.inputs
        for layer in track(range(self.last + 1), "compensate"):
            sums = {group.name: self._moments(group) for group in self.of_layer[layer]}
            for batch, h in enumerate(hidden):
                with self.walk.recording(self._linears(layer)) as seen:
                    hidden[batch] = self.walk.run(layer, h)
                for group in self.of_layer[layer]:
                    self._add(sums[group.name][batch >= self.train], group, seen[group.members[-1].module])
            for group in self.of_layer[layer]:
                self._fit(group, *sums[group.name])

    def sequential(self) -> None:
        """Fit one group after the other, behind everything that is pruned and compensated before it."""
        hidden = self.walk.inputs
        for layer in track(range(self.last + 1), "compensate"):
            for group in self.of_layer[layer]:
                path, sums = group.members[-1].module, self._moments(group)
                # Recording is entered first, so that it sees the input before the mask does.
                for batch, h in enumerate(hidden):
                    with self.walk.recording([path]) as seen, self._pruned(layer):
                        self.walk.run(layer, h)
                    self._add(sums[batch >= self.train], group, seen[path])
                self._fit(group, *sums)
            with self._pruned(layer):
                for batch, h in enumerate(hidden):
                    hidden[batch] = self.walk.run(layer, h)

    def _add(self, sums: Moments, group: Group, x: Tensor) -> None:
        """Add one batch of a group's input to its sums."""
        linear = get_linear(self.model, group.members[-1].module)
        if group.part == "experts.mlp":
            # An expert's samples with fewer tokens are filled up with rows of zeros, which are no tokens.
            x = x[x.any(-1)]
        kept, removed = _columns(group, self.plan, linear.weight.device)
        x_kept, x_removed = x[..., kept], x[..., removed]
        missing = nn.functional.linear(x_removed, linear.weight[:, removed])
        sums.add(x_kept, missing, missing + nn.functional.linear(x_kept, linear.weight[:, kept]))

    def _linears(self, layer: int) -> list[str]:
        return [group.members[-1].module for group in self.of_layer[layer]]

    def _pruned(self, layer: int) -> AbstractContextManager[nn.Module]:
        """Return a context in which the layer computes as pruned, with its corrections so far."""
        corrections = {path: self.corrections[path] for path in self._linears(layer) if path in self.corrections}
        return mask(self.model, self.plan, structure=self.structure, corrections=corrections, layers=(layer,))

    def _moments(self, group: Group) -> tuple[Moments, Moments]:
        """Return empty sums for the samples to fit and for those held out."""
        weight = get_linear(self.model, group.members[-1].module).weight
        channels = len(self.plan.keep[group.name]) * group.members[-1].width
        train, held_out = (Moments.empty(channels, weight.shape[0], weight.device) for _ in range(2))
        return train, held_out

    def _fit(self, group: Group, train: Moments, held_out: Moments) -> None:
        """Fit a group's correction, from sums over the samples to fit and over those held out."""
        path = group.members[-1].module
        if not (train.finite and held_out.finite):
            raise InputError(f"what enters or leaves {path} is not finite: weights or activations hold NaN or infinity")
        scale = held_out.output or 1.0
        before = after = held_out.error()
        linear, ridge = get_linear(self.model, path), None
        if self.how == "bias":
            after = held_out.error(bias=train.missing / max(1, train.tokens))
            both = train + held_out
            self.corrections[path] = _with_bias(linear, both.missing / max(1, both.tokens))
        else:
            tried = {r: held_out.error(delta=self._solve(path, train, r)) for r in RIDGES}
            best = min(tried, key=tried.__getitem__)
            if tried[best] < before:
                ridge, after = best, tried[best]
                kept, _removed = _columns(group, self.plan, linear.weight.device)
                weight = linear.weight.detach()[:, kept] + self._solve(path, train + held_out, ridge)
                self.corrections[path] = Correction(weight=weight.to(linear.weight).cpu())
        self.groups.append(GroupFit(group.name, ridge, before / scale, after / scale))

    def _solve(self, path: str, moments: Moments, ridge: float) -> Tensor:
        """Return the change of the kept weights; warn if it needed a larger ridge."""
        delta, taken = solve(moments, ridge)
        if taken != ridge:
            self.warnings.append(f"{path}: no Cholesky factor at ridge {ridge:g}; {taken:g} was taken in its place")
        return delta


def _columns(group: Group, plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return indices of the kept and of the removed input channels of a group's last member."""
    kept = torch.tensor(plan.keep[group.name])
    removed = torch.ones(group.units, dtype=torch.bool).index_fill_(0, kept, False).nonzero().flatten()
    width = group.members[-1].width
    return unit_slices(kept, width).to(device), unit_slices(removed, width).to(device)


def _with_bias(linear: nn.Linear, missing: Tensor) -> Correction:
    """Return a correction that adds the missing output to the linear's bias."""
    own = 0 if linear.bias is None else linear.bias.detach()
    return Correction(bias=(missing + own).to(linear.weight).cpu())
