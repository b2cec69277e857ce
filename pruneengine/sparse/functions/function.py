"""Allocation functions of DSA (Li, Dong et al., NeurIPS 2024) as values that can be printed, saved and compared.

A function takes the element-wise scores of every decoder block through ``pre`` operations, one reduction to a number,
a ``transform`` and a ``post`` operation. The position of a block's number between the least and the greatest of all
blocks decides how much sparser, or denser, than the others it becomes (:func:`.allocation.allocation_of`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.common.files import write_atomically
from pruneengine.common.validation import from_known, require_number
from pruneengine.sparse.functions.names import known

FORMAT = "pruneengine.function/1"
SPREAD = 0.08


@dataclass(frozen=True)
class Function:
    """``pre -> reduce -> transform -> post``, and the spread and sign that turn numbers into sparsities.

    Attributes:
        pre: none, one or two operations on the scores, in order; "no" among them is left out.
        reduce: reduction of a block's scores to one number. With "no", ``transform`` and ``post`` are applied to every
            score and their mean is the number, as in the authors' code.
        transform, post: operations on that number, in this order; "no" for none.
        spread: λ in (0, 0.5]: the greatest sparsity of a block lies 2λ above the least.
        sign: +1 when a higher value means more sparsity (as published), -1 when it means less.
        compat: evaluate as the authors' code does, its corner cases included, instead of finitely everywhere.

    Raises:
        ValueError: an unknown operation (with near names), more than two in ``pre``, a number out of its range, or,
            with ``compat``, an operation that the authors' code does not have.
        TypeError: a field has another type.
    """

    pre: tuple[str, ...]
    reduce: str
    transform: str = "no"
    post: str = "no"
    spread: float = SPREAD
    sign: int = 1
    compat: bool = False

    def __post_init__(self) -> None:
        pre: object = self.pre  # a text is a tuple of its letters to every later check
        if isinstance(pre, str):
            raise InputTypeError(f"pre must be a tuple of operation names, got {self.pre!r}")
        if not isinstance(self.compat, bool):
            raise InputTypeError(f"compat must be true or false, got {self.compat!r}")
        operations = tuple(name for name in (known("pre", name, self.compat) for name in self.pre) if name != "no")
        if len(operations) > 2:
            raise InputError(f"pre takes at most 2 operations, got {len(operations)}: {', '.join(operations)}")
        require_number("spread", self.spread)
        if not 0 < self.spread <= 0.5:
            raise InputError(f"the spread λ must lie in (0, 0.5], got {self.spread}")
        if isinstance(self.sign, bool) or self.sign not in (1, -1):
            raise InputError(f"sign must be +1 or -1, got {self.sign!r}")
        object.__setattr__(self, "pre", operations)
        object.__setattr__(self, "spread", float(self.spread))
        object.__setattr__(self, "sign", int(self.sign))
        for stage in ("reduce", "transform", "post"):
            object.__setattr__(self, stage, known(stage, getattr(self, stage), self.compat))

    def operations(self) -> list[tuple[str, str]]:
        """Return ``(stage, operation)`` in the order in which they are applied."""
        stages = [("reduce", self.reduce), ("transform", self.transform), ("post", self.post)]
        return [("pre", name) for name in self.pre] + stages

    def __str__(self) -> str:
        """Return the text that :func:`pruneengine.sparse.functions.grammar.parse` reads back as an equal function."""
        last = [self.transform] if self.post == "no" else [self.transform, self.post]
        stages = [", ".join(self.pre) or "no", self.reduce, ", ".join(last), f"λ={self.spread!r}"]
        return " | ".join(stages + ["-"] * (self.sign < 0) + ["compat"] * self.compat)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON has them."""
        return asdict(self) | {"pre": list(self.pre)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Function:
        """Return the function of a :meth:`to_dict`; raise ValueError or TypeError for any other content."""
        if missing := [name for name in ("pre", "reduce") if name not in values]:
            raise InputError(f"a function needs {' and '.join(missing)}; got {', '.join(values) or 'nothing'}")
        if isinstance(values["pre"], str) or not isinstance(values["pre"], (list, tuple)):
            raise InputTypeError(f"pre must be a list of operation names, got {values['pre']!r}")
        return from_known(cls, dict(values) | {"pre": tuple(values["pre"])}, "field of a function")

    def save(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the function and its metadata as JSON, atomically.

        Args:
            path: of the file.
            metadata: values that JSON can hold, such as the model it was found on, sparsity, pruner, loss.
        """
        content = {"format": FORMAT, "text": str(self), "function": self.to_dict(), "metadata": dict(metadata or {})}
        write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Function:
        """Read a file of :meth:`save`; raise FileNotFoundError, or ValueError if the file holds no function."""
        return _content(path)[0]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a file of :meth:`Function.save`."""
    return _content(path)[1]


def is_function_file(path: str | Path) -> bool:
    """Return True if the file's ``format`` is that of a function (other allocations are files, too)."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("format", "")).startswith("pruneengine.function/")


def _content(path: str | Path) -> tuple[Function, dict[str, Any]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"expected the format {FORMAT!r}")
        if not isinstance(content.get("function"), dict) or not isinstance(content.get("metadata", {}), dict):
            raise InputError("expected objects under 'function' and 'metadata'")
        return Function.from_dict(content["function"]), content.get("metadata", {})
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} holds no allocation function: {error}") from None


# The best function that the authors' repository releases (LLaMA-1-7B, Wanda, 70%): W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7).
PUBLISHED = Function(("abslog",), "var", "atan", "asin", compat=True)
