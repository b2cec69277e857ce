"""Config of structured pruning: options that are validated when made, written to and read from a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruneengine.common.aliases import accept_former_name
from pruneengine.common.errors import InputError
from pruneengine.common.recipes import plain_values
from pruneengine.common.validation import from_known, require_choice, require_number, require_whole
from pruneengine.data.samples import CalibrationText
from pruneengine.model import KINDS
from pruneengine.structured.allocate import ALLOCATIONS, PROTOCOLS
from pruneengine.structured.compensate import check_choice
from pruneengine.structured.plan import SHAPES
from pruneengine.structured.scores.hywia import FUSIONS, HyWIA, needs_of
from pruneengine.structured.scores.score import AGGREGATES, FOLDS

# Kinds of units that go as a whole and leave no width behind.
_WHOLE = frozenset({"layers", "experts"})


@accept_former_name("structure", "kinds")
@dataclass(frozen=True)
class PruneConfig(CalibrationText):
    """Options of removing heads, channels, layers and experts.

    Attributes:
        method: importance metric (:data:`pruneengine.structured.scores.metrics.METRICS`) or fused method ("hywia").
        ratio: in (0, 1): fraction of the prunable parameters of ``kinds`` removed, over the whole model; under
            ``protocol="llm-pruner"`` the fraction inside each group of ``layers``.
        kinds: kinds of units: "heads" (KV groups), "mlp" (channels), "layers", "experts". Until the next release also
            by its former name ``structure``, which recipes go on holding.
        allocation: "uniform", "global" or "unstructured" (each group's ratio is the fraction that unstructured pruning
            by Wanda's score would remove of it).
        shape: "uniform" (the same widths in every layer; any loader opens the result) or "per-layer" (needs the
            modelling file that is saved with the model). None is "uniform", or "per-layer" where ``layers`` or
            ``protocol`` leave layers of different width.
        protocol: "engine", or "llm-pruner" for ratios and rounding as in LLM-Pruner's scripts.
        layers: first and end (exclusive) decoder layer that may change; None for all.
        aggregate, fold: combination of the members of a group (:func:`pruneengine.structured.scores.score.score`).
        round_to: MLP widths become multiples of this; None chooses 8 below a billion parameters and 64 above.
        compensate, compensate_mode: compensation of removed units by the kept ones, fitted on the calibration text:
            "none", "bias" or "least-squares", and "one-shot" or "sequential" (:func:`compensate`).
        calibration, nsamples, seqlen, pack, batch_size, seed: :class:`pruneengine.data.samples.CalibrationText`; the
            seed is that of the random metric and of a fit, too.
        hywia_variant, hywia_temperature, hywia_blend: options of :class:`HyWIA`. Variant None is "c", which measures
            best (README), or "b" where whole layers or experts go, because nothing can be fitted through them.
        hywia_steps, hywia_samples: number of steps of the fit of variant "c", and of calibration samples held out for
            the fit.
    """

    method: str = "param_first"
    ratio: float = 0.2
    kinds: tuple[str, ...] = ("heads", "mlp")
    allocation: str = "uniform"
    shape: str | None = None
    protocol: str = "engine"
    layers: tuple[int, int] | None = None
    aggregate: str = "sum"
    fold: str = "gqa"
    round_to: int | None = None
    compensate: str = "none"
    compensate_mode: str = "sequential"
    hywia_variant: str | None = None
    hywia_temperature: float = HyWIA.temperature
    hywia_blend: float | None = None
    hywia_steps: int = 40
    hywia_samples: int = 8

    def __post_init__(self) -> None:
        # A command line and YAML write these as text or lists.
        object.__setattr__(self, "kinds", _kinds(self.kinds))
        object.__setattr__(self, "layers", _layers(self.layers))
        needs_of(self.method)
        _ = self.hywia  # refuses what it cannot do
        require_number("ratio", self.ratio)
        if not 0 < self.ratio < 1:
            raise InputError(f"ratio must lie in (0, 1), got {self.ratio}")
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise InputError(f"kinds must be one or more of {', '.join(KINDS)}, got {self.kinds!r}")
        require_choice("allocation", self.allocation, ALLOCATIONS)
        require_choice("protocol", self.protocol, PROTOCOLS)
        require_choice("aggregate", self.aggregate, tuple(AGGREGATES))
        require_choice("fold", self.fold, FOLDS)
        check_choice(self.compensate, self.compensate_mode)
        if self.compensate == "none" and self.compensate_mode != PruneConfig.compensate_mode:
            raise InputError(f"compensate_mode is {self.compensate_mode!r}, and compensate is 'none': it does nothing")
        if self.compensates and set(self.kinds) <= _WHOLE:
            whole = " and ".join(self.kinds)
            raise InputError(
                f"compensate is {self.compensate!r}: whole {whole} leave no channel that could make up for them"
            )
        for name in ("hywia_steps", "hywia_samples"):
            require_whole(name, getattr(self, name), 1, "a positive whole number")
        if self.round_to is not None:
            require_whole("round_to", self.round_to, 1, "a positive whole number")
        self.check_calibration_text()
        if self.shape is not None:
            require_choice("shape", self.shape, SHAPES)
        if self.shape == "uniform" and self._widths_differ:
            cause = f"layers {self.layers[0]}:{self.layers[1]}" if self.layers else "protocol 'llm-pruner'"
            raise InputError(f"{cause} leaves layers of different width: it needs shape 'per-layer', got 'uniform'")
        if self.protocol == "llm-pruner" and self._whole_kinds:
            whole = self._whole_kinds[-1]
            raise InputError(f"protocol 'llm-pruner' prunes heads and mlp; kinds must not name {whole}")
        if self.protocol == "llm-pruner" and self.allocation == "unstructured":
            raise InputError("protocol 'llm-pruner' fixes every group's ratio; allocation must not be 'unstructured'")
        if self.hywia_samples < 2:
            raise InputError(f"hywia_samples must be at least 2, got {self.hywia_samples}")
        self._check_hywia()

    def _check_hywia(self) -> None:
        """Raise ValueError if an option of HyWIA would do nothing: it is a mistake."""
        set_here = [
            f.name
            for f in dataclasses.fields(self)
            if f.name.startswith("hywia_") and getattr(self, f.name) != f.default
        ]
        if self.method not in FUSIONS and set_here:
            raise InputError(
                f"{set_here[0]} is {getattr(self, set_here[0])!r}: an option of method 'hywia', got {self.method!r}"
            )
        if self.hywia_variant == "c" and self.hywia_blend is not None:
            raise InputError(f"hywia_blend is {self.hywia_blend}: variant 'c' fits the blend; leave one of them out")
        if self.holds_out and self._whole_kinds:
            raise InputError(
                "hywia variant 'c' is fitted through masks of heads and mlp; kinds must not name "
                f"{self._whole_kinds[-1]}, got {','.join(self.kinds)}"
            )

    @property
    def structure(self) -> tuple[str, ...]:
        """The former name of :attr:`kinds`, until the next release."""
        return self.kinds

    @property
    def final_shape(self) -> str:
        """The shape asked for, or the simplest one that fits the rest."""
        return self.shape or ("per-layer" if self._widths_differ else "uniform")

    @property
    def _widths_differ(self) -> bool:
        """True if the choice of layers or the protocol leaves layers of different width."""
        return set(self.kinds) != {"layers"} and (self.protocol == "llm-pruner" or self.layers is not None)

    @property
    def _whole_kinds(self) -> list[str]:
        """The kinds that go as a whole, sorted."""
        return sorted(_WHOLE & set(self.kinds))

    @property
    def needs(self) -> frozenset[str]:
        """Quantities of the statistics that the method and the allocation read."""
        return needs_of(self.method) | ({"squares"} if self.reads_profile else frozenset())

    @property
    def compensates(self) -> bool:
        """True if the kept units are changed to make up for the removed ones."""
        return self.compensate != "none"

    @property
    def calibrates(self) -> bool:
        """True if the calibration text is read at all."""
        return bool(self.needs or self.compensates)

    @property
    def reads_profile(self) -> bool:
        """True if the allocation follows :func:`pruneengine.structured.sparsity_profile.sparsity_profile`."""
        return self.allocation == "unstructured" and not set(self.kinds) <= _WHOLE

    @property
    def hywia(self) -> HyWIA:
        """The options of "hywia"; the variant defaults to "c", or to "b" where a fit is not possible."""
        without_fit = self.hywia_blend is not None or bool(self._whole_kinds)
        variant = self.hywia_variant or ("b" if without_fit else "c")
        return HyWIA(variant, self.hywia_temperature, self.hywia_blend)

    @property
    def holds_out(self) -> int:
        """The number of last calibration samples that are kept from the statistics for a fit of the method."""
        return self.hywia_samples if self.method in FUSIONS and self.hywia.fitted else 0

    def layer_range(self, num_layers: int) -> range:
        """Return the layers that may change in a model with the given number of layers.

        Without ``layers``, protocol "llm-pruner" protects the first 4 and last 2 as LLM-Pruner's scripts do.
        """
        if self.layers is None:
            return range(4, num_layers - 2) if self.protocol == "llm-pruner" and num_layers > 6 else range(num_layers)
        if self.layers[1] > num_layers:
            raise InputError(f"layers {self.layers[0]}:{self.layers[1]} go beyond the model's {num_layers} layers")
        return range(*self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values that a recipe holds under ``config``."""
        values = plain_values(self)
        # Recipes of all versions have the options of HyWIA last, and the kinds under their former name.
        ordered = sorted(values, key=lambda name: name.startswith("hywia_"))
        return {"structure" if name == "kinds" else name: values[name] for name in ordered}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruneConfig:
        """Read :meth:`to_dict`'s values; ValueError for unknown keys, with the known ones."""
        return from_known(cls, values, former={"structure": "kinds"})


def _kinds(value: Any) -> tuple[str, ...]:
    """Return kinds from one text, split at commas, or from a sequence."""
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value)


def _layers(value: Any) -> tuple[int, int] | None:
    """Return layers from text such as "4:28" or a pair; ValueError for any other value."""
    if value is None:
        return None
    try:
        first, end = (int(part) for part in (value.split(":") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise InputError(f"layers must be first:end, two whole numbers, got {value!r}") from None
    if not 0 <= first < end:
        raise InputError(f"layers must be first:end with 0 <= first < end, got {first}:{end}")
    return first, end
