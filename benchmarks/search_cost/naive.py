"""One trial of a search as a loop around the papers' scripts would run it, timed by stage.

Every trial copies the dense model, calibrates on its own samples with gradients of all weights as LLM-Pruner does,
scores, slices the copy and evaluates it on every block. The scores and the plan are pruneengine's: only the work around
them is compared. Where the loop has a choice it gets the cheaper one. The samples of a subset are given to it, a metric
that needs no gradient gets a forward pass alone, and per-sample gradients are taken only where the metric reads them.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

import pruneengine
from pruneengine.calibration.statistics import QUANTITIES, Statistics
from pruneengine.common.progress import Stopwatch
from pruneengine.data.samples import Samples
from pruneengine.model import Structure, get_linear
from pruneengine.search.adapruner.config import AdaPrunerConfig
from pruneengine.search.adapruner.planner import CandidatePlanner
from pruneengine.search.adapruner.space.candidate import Candidate
from pruneengine.structured.scores.metric_family import MetricPoint

STAGES = ("copy", "calibrate", "score", "slice", "evaluate")
PART = "part of the whole text"
BATCH = 4
ACTIVATIONS = {"sum", "squares"}


@dataclass(frozen=True)
class NaiveTrial:
    """What the naive loop found for a candidate.

    Attributes:
        losses: mean token loss of every block, nats: float64 ``[N]``.
        seconds: by stage, and of :data:`PART` where such a part was given.
    """

    losses: Tensor
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Fresh:
    """Stands where a planner looks for its pool: this trial's statistics, whatever the subset."""

    found: Statistics | None

    def statistics(self, _subset: object) -> Statistics | None:
        return self.found


def naive_trial(
    dense: nn.Module,
    candidate: Candidate,
    samples: Samples,
    blocks: Samples,
    config: AdaPrunerConfig,
    part: Samples | None = None,
) -> NaiveTrial:
    """Run one candidate from the dense model to its loss; the dense model is not changed.

    Args:
        dense: copied, not read otherwise.
        candidate: of the search's space, with removed channels turned to zero.
        samples: the calibration samples of its subset.
        blocks: of the search's objective.
        config: the search's.
        part: some windows of a whole text, evaluated and timed besides.

    Raises:
        ValueError: removed channels that turn into their mean, or no legal plan.
    """
    if candidate.fill != "zero":
        raise ValueError(f"the naive loop slices, so removed channels turn to zero; got fill {candidate.fill!r}")
    clock = Stopwatch()
    with clock("copy"):
        model = copy.deepcopy(dense)
    structure = pruneengine.find_groups(model)
    with clock("calibrate"):
        found = fresh_statistics(model, samples, candidate.metric, structure, config)
    with clock("score"):
        plan = CandidatePlanner(model, structure, _Fresh(found), config).plan(candidate).plan
    with clock("slice"):
        pruneengine.compact(model, plan, structure=structure)
    with clock("evaluate"):
        losses = block_losses(model, blocks)
    if part is not None:
        with clock(PART):
            block_losses(model, part)
    return NaiveTrial(losses, clock.seconds)


@torch.no_grad()
def block_losses(model: nn.Module, blocks: Samples) -> Tensor:
    """Mean token loss of every block from the model's own logits, as an evaluation script takes it: float64 ``[N]``."""
    model.eval()
    losses = []
    for tokens in blocks.batches(BATCH):
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        nll = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
        losses.append(nll.view(len(tokens), -1).double().mean(1))
    return torch.cat(losses)


def fresh_statistics(
    model: nn.Module, samples: Samples, metric: MetricPoint, structure: Structure, config: AdaPrunerConfig
) -> Statistics | None:
    """What a metric reads, from gradients of all weights; None where it reads weights alone.

    Quantities that the search keeps a row a sample of are means over the samples here: one row.
    """
    if not metric.needs:
        return None
    tensors: dict[str, dict[str, Tensor]] = {quantity: {} for quantity in metric.needs}
    model.eval().requires_grad_(True)
    with contextlib.ExitStack() as hooks:
        for quantity in metric.needs & ACTIVATIONS:
            for site in structure.sites:
                hook = _totals(tensors[quantity], site.name, quantity, len(samples))
                hooks.enter_context(get_linear(model, site.module).register_forward_pre_hook(hook))
        if metric.needs <= ACTIVATIONS:
            with torch.no_grad():
                for tokens in samples.batches(config.batch_size):
                    model(input_ids=tokens, use_cache=False)
        else:
            for name, gradients in _gradients(model, samples, metric, structure, config).items():
                for quantity in metric.needs - ACTIVATIONS:
                    tensors[quantity][name] = gradients.sums(quantity)
    return Statistics(tensors, len(samples), samples.tokens.shape[1], model="", data="")


def _totals(into: dict[str, Tensor], name: str, quantity: str, count: int):
    """A hook that adds a batch's part of the mean over ``count`` samples: ``[1, C]``."""

    def hook(_module, args):
        x = args[0].detach().float().flatten(0, 1)
        total = (x.square() if quantity == "squares" else x).sum(0, keepdim=True) / count
        into[name] = into[name] + total if name in into else total

    return hook


@dataclass
class _Gradients:
    """What one weight's gradients leave behind; gradients of single samples only where ``each`` says so.

    Attributes:
        axis: summed over to get one value a unit's row or column.
        mean, squares, absolutes: over the samples, of the gradient's entries: ``[R, C]``.
        rows: sums of ``W * G`` of every sample.
    """

    weight: Tensor
    axis: int
    needs: frozenset[str]
    each: bool
    mean: Tensor = field(init=False)
    squares: Tensor | None = None
    absolutes: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mean = torch.zeros_like(self.weight)
        self.squares = torch.zeros_like(self.weight) if self.needs & {"fisher", "mix"} else None
        self.absolutes = torch.zeros_like(self.weight) if "abs_each" in self.needs else None

    def add(self, share: float) -> None:
        """Take in the gradient that is there, of so large a share of the samples."""
        gradient = self.weight.grad
        self.mean.add_(gradient, alpha=share)
        if self.squares is not None:
            self.squares.addcmul_(gradient, gradient, value=share)
        if self.absolutes is not None:
            self.absolutes.add_(gradient.abs(), alpha=share)
        if self.each and "signed" in self.needs:
            self.rows.append((self.weight * gradient).sum(self.axis))

    def sums(self, quantity: str) -> Tensor:
        """Sums over rows or columns, in the shape that statistics have: ``[1 or N, C]`` or ``[C]``."""
        if quantity == "signed" and self.rows:
            return torch.stack(self.rows)
        weight = self.weight.detach()
        terms = {
            "signed": lambda: weight * self.mean,
            "abs_mean": lambda: (weight * self.mean).abs(),
            "fisher": lambda: weight.square() * self.squares,
            "abs_each": lambda: weight.abs() * self.absolutes,
            "mix": lambda: (weight * self.mean - weight.square() * self.squares / 2).abs(),
        }[quantity]()
        found = terms.sum(self.axis)
        return found[None] if QUANTITIES[quantity][0] else found


def _gradients(
    model: nn.Module, samples: Samples, metric: MetricPoint, structure: Structure, config: AdaPrunerConfig
) -> dict[str, _Gradients]:
    """One backward pass a batch, or a sample where the metric is not a function of the mean gradient; by member."""
    each = metric.order != "first"
    layers = config.layer_range(structure.num_layers)
    found = {
        member.module: _Gradients(get_linear(model, member.module).weight, 1 - member.axis, metric.needs, each)
        for group in structure.scored(config.kinds, layers)
        for member in group.members
    }
    for tokens in samples.batches(1 if each else config.batch_size):
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        with torch.no_grad():
            for gradients in found.values():
                gradients.add(len(tokens) / len(samples))
        model.zero_grad(set_to_none=True)
    return found
