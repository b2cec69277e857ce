"""Plan of a sparse prune: the number of weights that every matrix loses.

The pruner decides on its way which weights of a matrix go.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pruneengine.common.budgets import largest_remainders
from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.common.files import write_atomically
from pruneengine.common.plan_files import parse_plan, plan_fields, plan_to_json, read_plan
from pruneengine.common.validation import from_known, require_whole, require_within
from pruneengine.sparse.matrices import Matrix, of_layers
from pruneengine.sparse.pattern import Pattern

_FORMAT = "pruneengine.sparse_plan/1"


@dataclass(frozen=True)
class SparsePlan:
    """The number of weights of each matrix that become zero.

    Attributes:
        model_type: model type of the model's config.
        method: the method that orders the weights: "magnitude", "wanda" or "sparsegpt".
        pattern: "unstructured" or "N:M". Under an allocation that is not uniform M is common and N each layer's own.
        allocation: the source of the counts, in words.
        asked, reached: sparsity over all matrices.
        shapes: ``(rows, columns)`` by the linear's module path.
        removed: number of weights that go, by the linear's module path.
    """

    model_type: str
    method: str
    pattern: str
    allocation: str
    asked: float
    reached: float
    shapes: dict[str, tuple[int, int]]
    removed: dict[str, int]

    def sparsity(self, name: str) -> float:
        """Return the sparsity of one matrix."""
        return self.removed[name] / math.prod(self.shapes[name])

    def kept_of_group(self, name: str) -> int:
        """Return N of the matrix; ValueError without an N:M pattern."""
        m = Pattern.parse(self.pattern).m
        if m is None:
            raise InputError(f"pattern {self.pattern!r} has no groups: expected N:M")
        return m - self.removed[name] * m // math.prod(self.shapes[name])

    def to_json(self) -> str:
        """Return JSON text: one line per field, and one per matrix in ``shapes`` and ``removed``."""
        return plan_to_json(_FORMAT, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SparsePlan:
        """Read :meth:`to_json`'s text; ValueError when it is not a plan or contradicts itself."""
        return cls.from_dict(parse_plan(text, "sparse plan"))

    @classmethod
    def from_dict(cls, values: Any) -> SparsePlan:
        """Return the plan whose fields JSON or YAML held; ValueError as :meth:`from_json`."""
        content = plan_fields(values, _FORMAT, "sparse plan")
        try:
            _check_fields(content)
            content["shapes"] = {name: tuple(shape) for name, shape in content["shapes"].items()}
            plan = from_known(cls, content, "field")
        except (TypeError, ValueError) as error:
            raise InputError(f"not a sparse plan: {error}") from None
        plan._validate()
        return plan

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json`'s text, atomically."""
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> SparsePlan:
        """Read a file of :meth:`save`; ValueError with the file's name if it is missing or not a sparse plan."""
        text = read_plan(path, "sparse plan")
        try:
            return cls.from_json(text)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    def check(self, matrices: Sequence[Matrix]) -> SparsePlan:
        """Raise ValueError if the plan is of another model, or of other linears of it; names the first difference."""
        shapes = {matrix.name: (matrix.rows, matrix.columns) for matrix in matrices}
        for name in {**shapes, **self.shapes}:
            here, there = shapes.get(name, "missing"), self.shapes.get(name, "missing")
            if here != there:
                reason = " (is ignore the same?)" if "missing" in (here, there) else ""
                raise InputError(f"the plan is of another model: {name} is {there} there and {here} here{reason}")
        return self

    def _validate(self) -> None:
        """Raise ValueError if fields contradict each other."""
        m = Pattern.parse(self.pattern).m
        if self.shapes.keys() != self.removed.keys():
            odd = min(self.shapes.keys() ^ self.removed.keys())
            raise InputError(f"not a sparse plan: {odd} is not in both of shapes and removed")
        for name, count in self.removed.items():
            if not 0 <= count <= math.prod(self.shapes[name]):
                raise InputError(f"not a sparse plan: {name} of {self.shapes[name]} loses {count} weights")
            if m and count * m % math.prod(self.shapes[name]):
                raise InputError(f"not a sparse plan: {name} loses {count} weights, which are not as many of each {m}")


def is_sparse_plan(path: str | Path) -> bool:
    """Return True if the file's own format is a sparse plan's (structured prunes leave other plans)."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("format", "")).startswith("pruneengine.sparse_plan/")


def make_sparse_plan(
    model_type: str,
    matrices: Sequence[Matrix],
    sparsities: Mapping[str, float],
    asked: float,
    *,
    method: str,
    pattern: Pattern | None = None,
    allocation: str = "uniform",
) -> SparsePlan:
    """Return the plan whose removed counts add up to the target, exact to one weight.

    With an N:M pattern the removed count per group is an integer, so layers of different size may miss the target
    slightly. ``reached`` then holds the actual sparsity; a miss larger than half a weight per group of the largest
    layer is an error.

    Args:
        model_type: model type of the model's config.
        matrices: all matrices that may be pruned.
        sparsities: fraction of each matrix, in [0, 1), by its name; their mean over weights is ``asked``.
        asked: sparsity over all matrices.
        method: recorded in the plan.
        allocation: the source of the sparsities, in words; recorded in the plan.
        pattern: with an N:M pattern every matrix keeps a whole number of weights of each group.

    Raises:
        ValueError: sparsities whose mean over weights is not ``asked``.
    """
    pattern = pattern or Pattern()
    total = sum(matrix.numel for matrix in matrices)
    mean = sum(sparsities[matrix.name] * matrix.numel for matrix in matrices) / total
    half = max(sum(matrix.numel for matrix in layer) for layer in of_layers(matrices).values()) / 2 / total
    if abs(mean - asked) > 1e-9 + (half / pattern.m if pattern.m else 0):
        raise InputError(f"the sparsities' mean over weights is {mean:.10g}, expected {asked:.10g}")
    # Under N:M one step removes a further weight from every group of the matrix.
    steps = {matrix.name: 1 if pattern.m is None else matrix.numel // pattern.m for matrix in matrices}
    limits = {matrix.name: pattern.m or matrix.numel for matrix in matrices}
    wishes = {matrix.name: sparsities[matrix.name] * matrix.numel / steps[matrix.name] for matrix in matrices}
    counts = largest_remainders(wishes, steps, round((mean if pattern.grouped else asked) * total), limits)
    removed = {name: count * steps[name] for name, count in counts.items()}
    return SparsePlan(
        model_type=model_type,
        method=method,
        pattern=str(pattern),
        allocation=allocation,
        asked=asked,
        reached=sum(removed.values()) / total,
        shapes={matrix.name: (matrix.rows, matrix.columns) for matrix in matrices},
        removed=removed,
    )


def _check_fields(content: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError, with the field's name, if a field is missing or of another kind."""
    if missing := [field.name for field in fields(SparsePlan) if field.name not in content]:
        raise InputError(f"{missing[0]} is missing")
    for name in ("model_type", "method", "allocation"):
        if not isinstance(content[name], str):
            raise InputTypeError(f"{name} must be a text, got {content[name]!r}")
    for name in ("asked", "reached"):
        require_within(name, content[name], 0, 1)
    for name in ("shapes", "removed"):
        if not isinstance(content[name], dict):
            raise InputTypeError(f"{name} must be an object by linear, got {reprlib.repr(content[name])}")
    for name, shape in content["shapes"].items():
        if not isinstance(shape, list | tuple) or len(shape) != 2:
            raise InputTypeError(f"shapes of {name} must be [rows, columns], got {reprlib.repr(shape)}")
        for side in shape:
            require_whole(f"shapes of {name}", side, 1, "positive whole numbers")
    for name, count in content["removed"].items():
        require_whole(f"removed of {name}", count, expected="a whole number of weights")
