"""Fit of HyWIA's attention (variant "c") end to end, through soft masks, on samples held out from the statistics.

Each step blends the scores, turns them into soft masks around the threshold at which the plan would cut, and follows
the gradient of the token loss with respect to the attention alone; the model's weights are frozen. The masks of a plan
are hard, so the loss under hard masks on the other half of the samples picks the step that is kept. (HyWIA's abstract
speaks of an end-to-end pass; this one is ours.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pruneengine.common.errors import InputError, NotFiniteError
from pruneengine.common.progress import track
from pruneengine.data.samples import Samples
from pruneengine.model import Structure
from pruneengine.model.decoder import causal_parts, frozen, hidden_states
from pruneengine.model.loss import token_nll, token_nll_backward
from pruneengine.model.masking import gate
from pruneengine.structured.scores.hywia import Blend, HyWIA, group_features, normalise
from pruneengine.structured.scores.hywia_attention import LearnedAttention

# The loss has cliffs: where one unit carries a layer, a small change of the blend lets it go. So steps are small, masks
# are very soft, and many steps are checked.
BATCH, CHECK_EVERY, LEARNING_RATE = 2, 4, 0.02
# Width of the soft step, in median distances of a group's scores from its threshold.
SOFTNESS = 0.5


@dataclass(frozen=True)
class Fit:
    """The attention that a fit kept, and its losses.

    Attributes:
        options: the options of the fit, with the attention that was kept.
        losses: mean token loss under soft masks, of every step's own batch.
        checks: ``{step: mean token loss under hard masks}`` on the samples that no step saw; step 0 is the equal blend.
        best: the step that was kept.
    """

    options: HyWIA
    losses: tuple[float, ...]
    checks: dict[int, float]
    best: int


def fit(
    model: nn.Module,
    structure: Structure,
    blend: Blend,
    removed: Mapping[str, int],
    samples: Samples,
    options: HyWIA,
    *,
    steps: int = 40,
    seed: int = 0,
) -> Fit:
    """Fit the attention that blends coarse and fine scores; the model is left as it was.

    Args:
        model: the dense model.
        structure: the model's structure.
        blend: the coarse and fine scores of its groups.
        removed: number of units of each group that the plan will remove; groups that lose none are not masked.
        samples: at least 2, held out from the statistics. Steps take two samples each, in turn, from the first half;
            the second half picks the step.
        options: options of variant "c"; the fit uses the temperature.
        steps: number of steps of Adam.
        seed: random seed of the initial attention.

    Raises:
        ValueError: fewer than two samples, or samples of fewer than two tokens.
        FloatingPointError: a loss is not finite.
    """
    if len(samples) < 2 or samples.tokens.shape[1] < 2:
        raise InputError(f"samples {tuple(samples.tokens.shape)}: a fit needs at least two of two tokens")
    scores = _Scores(structure, blend, removed)
    device = next(model.parameters()).device
    half = len(samples) // 2
    batches = [tokens.to(device) for tokens in samples.tokens[:half].split(BATCH)]
    held_out = [tokens.to(device) for tokens in samples.tokens[half:].split(BATCH)]
    attention = LearnedAttention.initial(seed)
    weights = [attention.query.requires_grad_(True), attention.key.requires_grad_(True)]
    optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)
    losses: list[float] = []
    checks: dict[int, float] = {}
    best = (float("inf"), 0, attention)
    with frozen(model):
        for step in track(range(steps + 1), "fit the blend"):
            if step % CHECK_EVERY == 0 or step == steps:
                with torch.no_grad(), gate(model, structure, scores.gates(attention, options.temperature, hard=True)):
                    checks[step] = _finite(_loss(model, held_out), step)
                if checks[step] < best[0]:
                    kept = LearnedAttention(*(weight.detach().clone() for weight in weights))
                    best = (checks[step], step, kept)
            if step == steps:
                break
            optimiser.zero_grad()
            with gate(model, structure, scores.gates(attention, options.temperature)):
                losses.append(_finite(_loss_backward(model, batches[step % len(batches)]), step))
            optimiser.step()
    return Fit(replace(options, attention=best[2]), tuple(losses), checks, best[1])


class _Scores:
    """Scores and features of the groups, which do not change from step to step."""

    def __init__(self, structure: Structure, blend: Blend, removed: Mapping[str, int]) -> None:
        self.groups = []
        for name, count in removed.items():
            if count:
                group = structure.by_name[name]
                coarse, fine = normalise(blend.coarse[name]), normalise(blend.fine[name])
                seen = group_features(coarse, fine, group, structure.num_layers)
                self.groups.append((name, count, coarse, fine, *seen))

    def gates(self, attention: LearnedAttention, temperature: float, hard: bool = False) -> dict[str, Tensor]:
        """Return soft or hard gates per group name by the blend of an attention."""
        gates = {}
        for name, count, coarse, fine, tokens, units in self.groups:
            share = attention.share(tokens, units, temperature)
            gates[name] = _gate((1 - share) * coarse + share * fine, count, hard)
        return gates


def _gate(scores: Tensor, removed: int, hard: bool) -> Tensor:
    """Return a step from 0 to 1 between the last score that goes and the first that stays: ``[units]``."""
    ordered, order = scores.detach().sort(stable=True)
    if hard:
        return torch.ones_like(scores).index_fill_(0, order[:removed], 0)
    threshold = ordered[removed - 1 : removed + 1].mean()
    width = SOFTNESS * (ordered - threshold).abs().median()
    return torch.sigmoid((scores - threshold) / width.clamp_min(torch.finfo(width.dtype).tiny))


def _loss(model: nn.Module, batches: list[Tensor]) -> float:
    _, head, logit_options = causal_parts(model)
    total = sum(
        float(token_nll(hidden_states(model, tokens)[:, :-1], head, tokens[:, 1:], **logit_options).double().sum())
        for tokens in batches
    )
    return total / sum(tokens[:, 1:].numel() for tokens in batches)


def _loss_backward(model: nn.Module, tokens: Tensor) -> float:
    _, head, logit_options = causal_parts(model)
    hidden = hidden_states(model, tokens)[:, :-1]
    weight = 1 / tokens[:, 1:].numel()
    nll, gradient = token_nll_backward(hidden.detach(), head, tokens[:, 1:], weight, **logit_options)
    hidden.backward(gradient)
    return float(nll.double().mean())


def _finite(loss: float, step: int) -> float:
    if loss != loss or abs(loss) == float("inf"):
        raise NotFiniteError(f"the loss is {loss} at step {step} of the fit")
    return loss
