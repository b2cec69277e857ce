"""Config of sparse pruning: options that are validated when made, written to and read from a recipe."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.common.recipes import plain_values
from pruneengine.common.validation import from_known, read_names, require_choice, require_number, require_whole
from pruneengine.data.samples import CalibrationText
from pruneengine.sparse.allocations.parse import read_inline, write_inline
from pruneengine.sparse.functions.allocation import MOST
from pruneengine.sparse.pattern import Pattern

METHODS = ("magnitude", "wanda", "sparsegpt")
MODES = ("sequential", "two-pass", "one-shot")
COMPARISONS = ("row", "matrix", "layer")
PUBLISHED_BLOCK = 128
_COMPARED = {"magnitude": "matrix", "wanda": "row"}


@dataclass(frozen=True)
class SparseConfig(CalibrationText):
    """Options of pruning single weights.

    Attributes:
        method: "magnitude", "wanda" (Sun et al. 2024) or "sparsegpt" (Frantar & Alistarh 2023).
        sparsity: in [0, 1): fraction of the weights of all linears in decoder layers, except those of ``ignore``, that
            become zero. None takes it from an N:M pattern; after construction it is never None.
        pattern: "unstructured", or "N:M": N weights kept of every M consecutive ones of a row.
        allocation: the spread of the sparsity over layers: a name
            (:data:`pruneengine.sparse.allocations.parse.NAMES`), an allocation function as text
            (:mod:`pruneengine.sparse.functions.grammar`), a list or mapping of sparsities per layer or linear (kept as
            JSON text), or a file: of either, or the plan of an earlier prune.
        spread: lambda of OWL and of allocation functions: sparsities span twice this (0.08, or the function's own).
            For other allocations: the largest distance of a layer from the mean; None for no bound.
        outlier: outlier threshold M of OWL, in multiples of the layer's mean score.
        compare: the weights that compete for zeros: of a "row", of a "matrix", or of a "layer" (all matrices of the
            decoder layer). None: "row" for Wanda and "matrix" for magnitude, as published. SparseGPT compares within
            blocks of columns.
        mode: "sequential" (each linear's statistics behind everything that is pruned before it; a layer runs once),
            "two-pass" (a layer's statistics before any of it is pruned, as the published loops do; it runs twice), or
            "one-shot" (statistics of the dense model).
        damp: of SparseGPT: value added to the Hessian's diagonal, as a fraction of the diagonal's mean.
        block: of SparseGPT: number of columns whose errors are handed on together. None: :data:`PUBLISHED_BLOCK`, or
            under N:M the multiple of M that is nearest to it; after construction it is never None.
        ignore: linears that stay dense and do not count (:func:`pruneengine.sparse.matrices.find_matrices`). One text
            is split at commas (:func:`pruneengine.common.validation.read_names`).
        calibration, nsamples, seqlen, pack, batch_size, seed: :class:`pruneengine.data.samples.CalibrationText`.
    """

    method: str = "wanda"
    sparsity: float | None = None
    pattern: str = "unstructured"
    allocation: str = "uniform"
    spread: float | None = None
    outlier: float = 5.0
    compare: str | None = None
    mode: str = "sequential"
    damp: float = 0.01
    block: int | None = None
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A command line and YAML write these as text or lists.
        object.__setattr__(self, "ignore", tuple(filter(None, read_names("ignore", self.ignore))))
        object.__setattr__(self, "allocation", _as_text(self.allocation))
        require_choice("method", self.method, METHODS)
        require_choice("mode", self.mode, MODES)
        pattern = Pattern.parse(self.pattern)
        self._check_sparsity(pattern)
        if self.compare is not None:
            require_choice("compare", self.compare, COMPARISONS)
            if self.method == "sparsegpt":
                raise InputError(
                    f"compare is {self.compare!r}: sparsegpt compares within blocks of columns; leave it out"
                )
            if pattern.grouped:
                raise InputError(f"compare is {self.compare!r}: under {pattern} every group of {pattern.m} is its own")
            if self.compare == "layer" and self.mode == "sequential" and self.method == "wanda":
                raise InputError(
                    "compare 'layer' needs all scores of a layer before it is pruned: mode 'two-pass' or 'one-shot', "
                    "got 'sequential'"
                )
        for name in ("damp", "outlier"):
            require_number(name, getattr(self, name))
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.spread is not None:
            require_number("spread", self.spread)
            if not 0 <= self.spread <= 0.5:
                raise InputError(f"spread must lie in [0, 0.5], got {self.spread}")
        block = self._nearest_block(pattern) if self.block is None else self.block
        require_whole("block", block, 1, "a positive whole number")
        if self.method == "sparsegpt" and pattern.m and block % pattern.m:
            raise InputError(f"block must be a multiple of the pattern's {pattern.m}, got {block}")
        object.__setattr__(self, "block", block)
        if type(self.allocation) is not str:
            raise InputTypeError(f"allocation must be str, got {self.allocation!r}")
        self.check_calibration_text()

    def _check_sparsity(self, pattern: Pattern) -> None:
        """Settle the sparsity by the pattern; ValueError or TypeError if it is missing or contradicts the rest."""
        sparsity = pattern.sparsity if self.sparsity is None else self.sparsity
        if sparsity is None:
            raise InputError("sparsity is missing: expected a fraction in [0, 1), or an N:M pattern that says it")
        require_number("sparsity", sparsity)
        if not 0 <= sparsity < 1:
            raise InputError(f"sparsity must lie in [0, 1), got {sparsity}")
        if sparsity > MOST and self.allocation != "uniform":
            raise InputError(
                f"allocations leave every layer at least {1 - MOST:.0%} of its weights: sparsity must lie in "
                f"[0, {MOST}], or allocation be uniform, got {sparsity} and {reprlib.repr(self.allocation)}"
            )
        if pattern.sparsity is not None and abs(sparsity - pattern.sparsity) > 1e-9:
            raise InputError(f"pattern {pattern} has sparsity {pattern.sparsity:g}, got {sparsity:g}; leave it out")
        object.__setattr__(self, "sparsity", sparsity)

    def _nearest_block(self, pattern: Pattern) -> int:
        if self.method != "sparsegpt" or pattern.m is None:
            return PUBLISHED_BLOCK
        return round(PUBLISHED_BLOCK / pattern.m) * pattern.m

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for a report on numbers that differ from the published ones."""
        pattern = Pattern.parse(self.pattern)
        nearest = self._nearest_block(pattern)
        if self.method != "sparsegpt" or self.block != nearest or nearest == PUBLISHED_BLOCK:
            return ()
        return (
            f"SparseGPT works in blocks of {nearest} columns, the multiple of {pattern.m} nearest to the published "
            f"{PUBLISHED_BLOCK}",
        )

    @property
    def compared(self) -> str:
        """The weights that compete, as asked or as published; "block" for SparseGPT and "group" under N:M."""
        if Pattern.parse(self.pattern).grouped:
            return "group"
        return self.compare or _COMPARED.get(self.method, "block")

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values that a recipe holds under ``sparse``."""
        plain = plain_values(self)
        written = read_inline(self.allocation)
        return plain if written is None else plain | {"allocation": written}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparseConfig:
        """Read :meth:`to_dict`'s values; ValueError for unknown keys, with the known ones."""
        return from_known(cls, values)


def _as_text(allocation: Any) -> Any:
    """Return sparsities as one JSON text, however they were written, and any other allocation as it is."""
    values = read_inline(allocation) if isinstance(allocation, str) else allocation
    return write_inline(values) if isinstance(values, list | tuple | Mapping) else allocation
