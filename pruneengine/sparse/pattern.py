"""Which weights may go together: any, or a fixed number of every few consecutive ones."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNSTRUCTURED = "unstructured"
# The op's limit (pruneengine.ops.nm_mask).
LARGEST_GROUP = 32


@dataclass(frozen=True)
class Pattern:
    """``n`` weights are kept of every ``m`` consecutive ones of a row; both None where any weight may go."""

    n: int | None = None
    m: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """ "unstructured", or "N:M" with N kept of M: "2:4", "4:8", ...

        Raises:
            ValueError: anything else, with what was expected.
        """
        if text == UNSTRUCTURED:
            return cls()
        found = re.fullmatch(r"(\d+):(\d+)", text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"pattern {text!r}: expected unstructured, or N:M such as 2:4 (N weights kept of M)")
        n, m = int(found[1]), int(found[2])
        if not 0 < n < m:
            raise ValueError(f"pattern {text!r} keeps {n} of {m}: expected 0 < N < M")
        if m > LARGEST_GROUP:
            raise ValueError(f"pattern {text!r}: groups of at most {LARGEST_GROUP} weights, got {m}")
        return cls(n, m)

    @property
    def grouped(self) -> bool:
        """Whether it is an N:M pattern."""
        return self.m is not None

    @property
    def sparsity(self) -> float | None:
        """The fraction that an N:M pattern removes; None where any will do."""
        return None if self.m is None else (self.m - self.n) / self.m

    def __str__(self) -> str:
        return UNSTRUCTURED if self.m is None else f"{self.n}:{self.m}"
