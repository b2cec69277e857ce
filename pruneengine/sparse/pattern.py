"""Sparsity patterns: unstructured, or N weights kept of every M consecutive ones (N:M)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pruneengine.common.errors import InputError

UNSTRUCTURED = "unstructured"
# The op's limit (pruneengine.ops.nm_mask).
LARGEST_GROUP = 32


@dataclass(frozen=True)
class Pattern:
    """``n`` weights kept of every ``m`` consecutive ones of a row; both None where any weight may be removed."""

    n: int | None = None
    m: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Return the pattern of a text: "unstructured", or "N:M" with N weights kept of M, such as "2:4".

        Raises:
            ValueError: any other text; the message says what was expected.
        """
        if text == UNSTRUCTURED:
            return cls()
        numbers = re.fullmatch(r"(\d+):(\d+)", text) if isinstance(text, str) else None
        if numbers is None:
            raise InputError(f"pattern {text!r}: expected unstructured, or N:M such as 2:4 (N weights kept of M)")
        n, m = int(numbers[1]), int(numbers[2])
        if not 0 < n < m:
            raise InputError(f"pattern {text!r} keeps {n} of {m}: expected 0 < N < M")
        if m > LARGEST_GROUP:
            raise InputError(f"pattern {text!r}: groups of at most {LARGEST_GROUP} weights, got {m}")
        return cls(n, m)

    @property
    def grouped(self) -> bool:
        """True for an N:M pattern."""
        return self.m is not None

    @property
    def sparsity(self) -> float | None:
        """The fraction of weights that an N:M pattern removes; None for unstructured."""
        return None if self.n is None or self.m is None else (self.m - self.n) / self.m

    def __str__(self) -> str:
        return UNSTRUCTURED if self.m is None else f"{self.n}:{self.m}"
