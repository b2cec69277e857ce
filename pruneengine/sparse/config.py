"""What to prune sparsely, validated where it is made, written to and read from a recipe."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruneengine.common.recipes import plain_values
from pruneengine.common.validation import from_known, require_choice, require_number, require_whole, split_names
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
    """How to prune single weights.

    Attributes:
        method: "magnitude", "wanda" (Sun et al. 2024) or "sparsegpt" (Frantar & Alistarh 2023).
        sparsity: in [0, 1): fraction of the weights of all linears in decoder layers, but for those of ``ignore``, that
            become zero; None where an N:M pattern says it.
        pattern: "unstructured", or "N:M": N weights kept of every M consecutive ones of a row.
        allocation: how the sparsity is spread over layers: a name
            (:data:`pruneengine.sparse.allocations.parse.NAMES`), an allocation function as text
            (:mod:`pruneengine.sparse.functions.grammar`), a list or mapping of sparsities per layer or linear (kept as
            JSON text), or a file: of either, or the plan of an earlier prune.
        spread: lambda of OWL and of allocation functions: sparsities span twice this (0.08, or the function's own).
            For the other allocations the farthest that a layer may be from the mean; None for no bound.
        outlier: M of OWL: a weight whose score is above so many means of its layer's is an outlier.
        compare: whose weights compete for the zeros of a matrix: "row", "matrix", or "layer" (all matrices of the
            decoder layer). None: "row" for Wanda and "matrix" for magnitude, as published. SparseGPT compares within
            blocks of columns.
        mode: "sequential" (each linear's statistics behind everything that is pruned before it; a layer runs once),
            "two-pass" (a layer's statistics before any of it is pruned, as the published loops do; it runs twice), or
            "one-shot" (statistics of the dense model).
        damp: SparseGPT's: what is added to the Hessian's diagonal, as a fraction of its mean.
        block: SparseGPT's: columns whose errors are handed on together. None: :data:`PUBLISHED_BLOCK`, or under N:M the
            multiple of M that is nearest to it.
        ignore: linears that stay dense, and do not count (:func:`pruneengine.sparse.matrices.find_matrices`); as one
            text, parted by commas (:func:`pruneengine.common.validation.split_names`).
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
        ignore = split_names(self.ignore) if isinstance(self.ignore, str) else self.ignore
        object.__setattr__(self, "ignore", tuple(part.strip() for part in ignore if part.strip()))
        object.__setattr__(self, "allocation", _as_text(self.allocation))
        require_choice("method", self.method, METHODS)
        require_choice("mode", self.mode, MODES)
        pattern = Pattern.parse(self.pattern)
        self._check_sparsity(pattern)
        if self.compare is not None:
            require_choice("compare", self.compare, COMPARISONS)
            if self.method == "sparsegpt":
                raise ValueError(
                    f"compare is {self.compare!r}: sparsegpt compares within blocks of columns; leave it out"
                )
            if pattern.grouped:
                raise ValueError(f"compare is {self.compare!r}: under {pattern} every group of {pattern.m} is its own")
            if self.compare == "layer" and self.mode == "sequential" and self.method == "wanda":
                raise ValueError(
                    "compare 'layer' needs all scores of a layer before it is pruned: mode 'two-pass' or 'one-shot', "
                    "got 'sequential'"
                )
        for name in ("damp", "outlier"):
            require_number(name, getattr(self, name))
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.spread is not None:
            require_number("spread", self.spread)
            if not 0 <= self.spread <= 0.5:
                raise ValueError(f"spread must lie in [0, 0.5], got {self.spread}")
        if self.block is None:
            object.__setattr__(self, "block", self._nearest_block(pattern))
        require_whole("block", self.block, 1, "a positive whole number")
        if self.method == "sparsegpt" and pattern.grouped and self.block % pattern.m:
            raise ValueError(f"block must be a multiple of the pattern's {pattern.m}, got {self.block}")
        if type(self.allocation) is not str:
            raise TypeError(f"allocation must be str, got {self.allocation!r}")
        self.check_calibration_text()

    def _check_sparsity(self, pattern: Pattern) -> None:
        if self.sparsity is None:
            if not pattern.grouped:
                raise ValueError("sparsity is missing: expected a fraction in [0, 1), or an N:M pattern that says it")
            object.__setattr__(self, "sparsity", pattern.sparsity)
        require_number("sparsity", self.sparsity)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        if self.sparsity > MOST and self.allocation != "uniform":
            raise ValueError(
                f"allocations leave every layer at least {1 - MOST:.0%} of its weights: sparsity must lie in "
                f"[0, {MOST}], or allocation be uniform, got {self.sparsity} and "
                f"{reprlib.repr(self.allocation)}"
            )
        if pattern.grouped and abs(self.sparsity - pattern.sparsity) > 1e-9:
            raise ValueError(
                f"pattern {pattern} has sparsity {pattern.sparsity:g}, got {self.sparsity:g}; leave it out"
            )

    def _nearest_block(self, pattern: Pattern) -> int:
        if self.method != "sparsegpt" or not pattern.grouped:
            return PUBLISHED_BLOCK
        return round(PUBLISHED_BLOCK / pattern.m) * pattern.m

    @property
    def notes(self) -> tuple[str, ...]:
        """What else than the published numbers is taken: sentences for a report."""
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
        """Whose weights compete, as asked or as published; "block" for SparseGPT and "group" under N:M."""
        if Pattern.parse(self.pattern).grouped:
            return "group"
        return self.compare or _COMPARED.get(self.method, "block")

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what a recipe holds under ``sparse``."""
        plain = plain_values(self)
        written = read_inline(self.allocation)
        return plain if written is None else plain | {"allocation": written}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparseConfig:
        """The inverse of :meth:`to_dict`; ValueError for unknown keys, with the known ones."""
        return from_known(cls, values)


def _as_text(allocation: Any) -> Any:
    """Sparsities as one JSON text, however they were written; what else there is as it is."""
    values = read_inline(allocation) if isinstance(allocation, str) else allocation
    return write_inline(values) if isinstance(values, list | tuple | Mapping) else allocation
