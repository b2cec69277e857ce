"""Plan of a structured prune: the units that stay, as a small printable JSON value.

Deciding ends with a plan, and changing the model starts from one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pruneengine import ops
from pruneengine.common.errors import InputError
from pruneengine.common.files import write_atomically
from pruneengine.common.plan_files import parse_plan, plan_fields, plan_to_json, read_plan
from pruneengine.model import KINDS, Group, Structure, expert_of, layer_of
from pruneengine.structured.rounding import spread_counts, uniform_counts
from pruneengine.structured.scores.score import Scores
from pruneengine.structured.whole_experts import lowest_experts, spare_experts

SHAPES = ("uniform", "per-layer")
_FORMAT = "pruneengine.plan/1"


@dataclass(frozen=True)
class Plan:
    """The units of a model that stay.

    Attributes:
        keep: ascending kept units per group name, for every group of the layers that stay; an expert without an entry
            goes as a whole.
        kept_layers: ascending indices of the decoder layers that stay.
        shape: "uniform" (every layer has the same widths) or "per-layer".
        asked, reached: the ratio asked for and what the plan removes, as fractions of the prunable parameters of
            ``kinds`` over the whole model.
        params_before, params_after: all parameters of the model, tied ones counted once.
    """

    model_type: str
    kinds: tuple[str, ...]
    shape: str
    asked: float
    reached: float
    params_before: int
    params_after: int
    kept_layers: tuple[int, ...]
    units: dict[str, int]
    keep: dict[str, tuple[int, ...]]

    def to_json(self) -> str:
        """Return JSON text: one line per field, and one per group in ``units`` and ``keep``."""
        return plan_to_json(_FORMAT, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read :meth:`to_json`'s text; ValueError when it is not a plan or contradicts itself."""
        content = plan_fields(parse_plan(text, "plan"), _FORMAT, "plan")
        try:
            content["keep"] = {name: tuple(units) for name, units in content["keep"].items()}
            plan = cls(**content | {k: tuple(content[k]) for k in ("kinds", "kept_layers")})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not a plan: {error}") from None
        plan._validate()
        return plan

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json`'s text, atomically."""
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a file of :meth:`save`; ValueError with the file's name if it cannot be read or is not a plan."""
        text = read_plan(path, "plan")
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    def check(self, structure: Structure) -> Plan:
        """Raise ValueError if the plan was made for another model, or keeps fewer experts than a token is sent to."""
        units = {group.name: group.units for group in structure.groups}
        if (self.model_type, self.units) != (structure.model_type, units):
            differing = next((n for n in sorted(units | self.units) if units.get(n) != self.units.get(n)), "model_type")
            raise InputError(
                f"the plan was made for another model: {differing} has {self.units.get(differing, self.model_type)} "
                f"in the plan and {units.get(differing, structure.model_type)} in the model"
            )
        for layer in self.kept_layers:
            if len(self.kept_experts(layer)) < structure.experts_per_token:
                raise InputError(
                    f"the plan keeps {len(self.kept_experts(layer))} experts of layer {layer}, and a token is sent to "
                    f"{structure.experts_per_token}"
                )
        return self

    def kept_experts(self, layer: int) -> tuple[int, ...]:
        """Return the ascending indices of a layer's experts that stay; none in a model without experts."""
        experts = (expert_of(name) for name in self.keep if layer_of(name) == layer)
        return tuple(sorted(expert for expert in experts if expert is not None))

    @property
    def lost_experts(self) -> tuple[str, ...]:
        """Group names of the experts that go from layers that stay."""
        kept = set(self.kept_layers)
        return tuple(n for n in self.units if layer_of(n) in kept and expert_of(n) is not None and n not in self.keep)

    def _validate(self) -> None:
        """Raise ValueError if fields contradict each other."""
        if unknown := [n for n in self.units if not re.fullmatch(r"layers\.\d+\.(heads|(experts\.\d+\.)?mlp)", n)]:
            raise InputError(f"plan: {unknown[0]!r} is no group's name")
        if self.shape not in SHAPES or not self.kinds or set(self.kinds) - set(KINDS):
            raise InputError(f"plan: unknown shape {self.shape!r} or kinds {self.kinds}")
        whole = [*self.units.values(), self.params_before, self.params_after, *self.kept_layers]
        if not all(type(n) is int and n >= 0 for n in [*whole, *(u for kept in self.keep.values() for u in kept)]):
            raise InputError("plan: units, layers and parameter counts must be whole numbers from 0")
        if not (0 < self.params_after < self.params_before and 0 < self.asked < 1 and 0 < self.reached <= 1):
            raise InputError(
                f"plan: {self.params_before} => {self.params_after} parameters, asked {self.asked}, "
                f"reached {self.reached} do not fit together"
            )
        layers = {layer_of(name) for name in self.units}
        if (
            not self.kept_layers
            or not set(self.kept_layers) <= layers
            or list(self.kept_layers) != sorted(set(self.kept_layers))
        ):
            raise InputError(f"plan: kept_layers {self.kept_layers} must be ascending layers out of {len(layers)}")
        expected = {name for name in self.units if layer_of(name) in self.kept_layers}
        if odd := (expected ^ self.keep.keys()) - set(self.lost_experts):
            raise InputError(f"plan: group {sorted(odd)[0]} is missing or belongs to no kept layer")
        for name, kept in self.keep.items():
            if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= self.units[name]:
                raise InputError(
                    f"plan: {name} must keep ascending units out of 0..{self.units[name] - 1}, got {kept[:8]}"
                )


def make_plan(
    structure: Structure,
    scores: Scores,
    ratios: Mapping[str, float],
    ratio: float,
    *,
    kinds: tuple[str, ...] = ("heads", "mlp"),
    shape: str = "uniform",
    round_to: int | None = None,
    protocol: str = "engine",
) -> Plan:
    """Turn ratios into whole units that meet the target after rounding, and pick the lowest-scored units.

    Heads are rounded first, down in uniform plans. MLP channels, the finest unit, make up for the rounding, in widths
    that are multiples of ``round_to`` (default :func:`default_rounding`). Under ``protocol="llm-pruner"`` every group
    removes as many units as LLM-Pruner would (methods 1.2) and nothing is rounded.

    Args:
        structure: the model's structure.
        scores: scores of its units; the lowest go, the lower index first among equals.
        ratios: as returned by :func:`allocate`; groups without a ratio keep everything.
        ratio: the target, a fraction of the prunable parameters of ``kinds``.
        kinds: as given to :func:`allocate`.
        shape: "uniform" (the ratios are averaged over the layers) or "per-layer".
        round_to: MLP widths become multiples of this; None for the default.
        protocol: "engine" or "llm-pruner".

    Raises:
        ValueError: no legal width other than the present one is near the target, or ``shape="uniform"`` on a model
            whose layers already differ.
    """
    if shape not in SHAPES:
        raise InputError(f"unknown shape {shape!r}; choose from {', '.join(SHAPES)}")
    dropped = {i for i in range(structure.num_layers) if f"layers.{i}" in ratios}
    kept_layers = tuple(i for i in range(structure.num_layers) if i not in dropped)
    experts = _lost_experts(structure, scores, ratios, shape)
    lost_groups = {structure.experts(i)[e].name for i, indices in experts.items() for e in indices}
    groups = [g for g in structure.groups if g.layer not in dropped and g.name not in lost_groups]
    prunable = structure.prunable_params(kinds)
    lost = sum(structure.layer_params[i] for i in dropped)
    lost += sum(structure.expert_params[i][e] for i, indices in experts.items() for e in indices)
    if protocol == "llm-pruner":
        counts = {g.name: _llm_pruner_count(g, ratios[g.name]) for g in groups if g.name in ratios}
    else:
        multiple = round_to or default_rounding(structure)
        budget = ratio * prunable - lost
        pruned = [g for g in groups if g.name in ratios]
        if shape == "uniform":
            counts = uniform_counts(pruned, ratios, budget, multiple)
        else:
            counts = spread_counts(pruned, ratios, budget, multiple, scores)
    removed = lost + sum(counts.get(g.name, 0) * g.unit_params for g in groups)
    if removed == 0:
        raise InputError(_nothing_to_remove(structure, kinds, ratio, round_to))
    return Plan(
        model_type=structure.model_type,
        kinds=tuple(kinds),
        shape=shape,
        asked=ratio,
        reached=removed / prunable,
        params_before=structure.total_params,
        params_after=structure.total_params - removed,
        kept_layers=kept_layers,
        units={g.name: g.units for g in structure.groups},
        keep={g.name: _keep(scores, g, counts.get(g.name, 0)) for g in groups},
    )


def rounding_warning(plan: Plan, structure: Structure, round_to: int | None) -> str | None:
    """Return a line about a plan that misses its target by more than half a step of the finest unit, or None.

    A step is one multiple of MLP channels, or one KV group where heads are pruned alone: in every layer of a uniform
    plan, in one layer otherwise. Plans that drop layers or experts have no such step.

    Args:
        plan: of :func:`make_plan`.
        structure: of the model.
        round_to: as given to :func:`make_plan`.
    """
    if set(plan.kinds) - {"heads", "mlp"}:
        return None
    kind, multiple = ("mlp", round_to or default_rounding(structure)) if "mlp" in plan.kinds else ("heads", 1)
    prices = [multiple * group.unit_params for group in structure.of_kind((kind,)) if group.name in plan.keep]
    step = (sum(prices) if plan.shape == "uniform" else max(prices)) / structure.prunable_params(plan.kinds)
    if abs(plan.reached - plan.asked) <= step / 2 * (1 + 1e-9):
        return None
    what = f"multiples of {multiple} MLP channels" if kind == "mlp" else "whole KV groups"
    return f"asked to remove {plan.asked:.2%}, the plan removes {plan.reached:.2%}: no nearer width is one of {what}"


def default_rounding(structure: Structure) -> int:
    """Return the multiple for MLP widths: 8 for models under a billion parameters, 64 above, as matrix units need."""
    return 8 if structure.total_params < 1e9 else 64


def _lost_experts(
    structure: Structure, scores: Scores, ratios: Mapping[str, float], shape: str
) -> dict[int, tuple[int, ...]]:
    """Return the experts of every layer that go: the same number in each layer if the shape is uniform."""
    named = {i: ratios.get(f"layers.{i}.experts") for i in range(structure.num_layers)}
    counts = {i: round(ratio * len(structure.expert_params[i])) for i, ratio in named.items() if ratio is not None}
    if shape == "uniform" and counts:
        even = min(round(sum(counts.values()) / len(counts)), *(spare_experts(structure, i) for i in counts))
        counts = dict.fromkeys(counts, even)
    return lowest_experts(structure, scores, counts)


def _keep(scores: Scores, group: Group, count: int) -> tuple[int, ...]:
    """Return the ascending units that stay when the given number of lowest-scored ones goes."""
    if count == 0:
        return tuple(range(group.units))
    removed = ops.select_mask(scores.groups[group.name][None], count)[0]
    return tuple(torch.nonzero(~removed).flatten().tolist())


def _llm_pruner_count(group: Group, ratio: float) -> int:
    """Return the units LLM-Pruner removes: ``C - int(C * (1 - ratio))`` rows of the root, rounded down to heads."""
    rows = group.units * group.root_width
    count = (rows - int(rows * (1 - ratio))) // group.root_width
    if count >= group.units:
        raise InputError(f"ratio {ratio:g} leaves nothing of {group.name}, which has {group.units} units")
    return count


def _nothing_to_remove(structure: Structure, kinds: tuple[str, ...], ratio: float, round_to: int | None) -> str:
    """Return the message of an error: the smallest step of every kind at legal widths."""
    smallest = []
    if "layers" in kinds:
        smallest.append(f"one layer is {1 / structure.num_layers:.3f} of the layers")
    if "experts" in kinds:
        smallest.append(f"one expert of {len(structure.expert_params[0])} a layer is the least of those")
    for group in [g for g in structure.groups if g.layer == 0 and g.kind in kinds]:
        what = "KV group" if group.kind == "heads" else "channel"
        smallest.append(f"one {what} of {group.units} a layer is {1 / group.units:.3f} of the {group.kind}")
    if "heads" in kinds and structure.undivided_heads:
        smallest.append(structure.undivided_heads)
    rounding = f", widths are multiples of {round_to}" if round_to else ""
    return f"ratio {ratio:g} removes nothing at legal widths: {'; '.join(smallest)}{rounding}"
