"""Correctness gate: comparisons of results, and the providers that fail them, which are not timed.

Expected results are cloned: a formula that returns a buffer of its own shares it with all who run the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pruneengine.bench.case import Agree, Case, Inputs, Work
from pruneengine.bench.providers import Provider, providers_of

SUMS_WITHIN = 2e-5  # of the largest: float32 accumulation over 10^4 terms stays under, one lost column of 1001 does not


def failures(case: Case, inputs: Inputs, names: list[str]) -> dict[str, str]:
    """Return ``{provider: reason}`` for failures on the small odd shape, against float64 or the exact specification.

    torch.compile is judged on the timed shape only: each shape is compiled anew, for seconds.
    """
    names = [name for name in names if name != "compile"]
    work = case.make(inputs, case.gate)
    expected = _cloned(work.specified())
    judged = {p.name: _judge(p, work, expected, p.agree) for p in providers_of(case, work, names)}
    return {name: reason for name, reason in judged.items() if reason}


def failures_as_timed(work: Work, providers: Sequence[Provider]) -> dict[str, str]:
    """Return failures on the timed shape, of all providers but eager torch, against the formula in float32."""
    expected = _cloned(work.reference(*work.inputs))
    loosely = work.loosely or work.agree
    judged = {p.name: _judge(p, work, expected, loosely) for p in providers if p.ours or p.name == "compile"}
    return {name: reason for name, reason in judged.items() if reason}


def sums(result: Any, expected: Any, within: float = SUMS_WITHIN) -> str | None:
    """Compare sums: each tensor is within the given part of the largest expected magnitude."""
    for number, (got, right) in enumerate(_pairs(result, expected)):
        if got.shape != right.shape:
            return f"output {number} has shape {list(got.shape)}, not {list(right.shape)}"
        got, right = got.double(), right.double()
        scale = right.abs().max().clamp_min(1e-30)
        error = ((got - right).abs() / scale).max()
        if not error <= within:
            return f"output {number} is off by {float(error):.1e} of its largest value"
    return None


def exactly(result: Any, expected: Any) -> str | None:
    """Compare exactly: the same values in the same places."""
    for number, (got, right) in enumerate(_pairs(result, expected)):
        if got.shape != right.shape or got.dtype != right.dtype:
            actual, due = ((list(t.shape), t.dtype) for t in (got, right))
            return f"output {number} is {actual}, not {due}"
        if not torch.equal(got, right):
            return f"output {number} differs in {int((got != right).sum())} of {right.numel()} places"
    return None


def covers(result: Tensor, expected: Tensor) -> str | None:
    """Compare a mask by threshold: it selects all that must be, and may select more where scores are equal."""
    missing = int((expected & ~result).sum())
    return f"{missing} that must be selected are not" if missing else None


def _judge(provider: Provider, work: Work, expected: object, agree: Agree) -> str | None:
    try:
        with provider.ready():
            reason = agree(provider.bind(work)(), expected)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:  # of a backend, a compiler or a device: any of them means that the op is not computed
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return reason


def _cloned(result: Any) -> Any:
    """Return a nested result in memory of its own."""
    return result.clone() if isinstance(result, Tensor) else [_cloned(part) for part in result]


def _pairs(result: Any, expected: Any) -> list[tuple[Tensor, Tensor]]:
    return list(zip(_tensors(result), _tensors(expected), strict=True))


def _tensors(result: Any) -> list[Tensor]:
    """Return the tensors of a nested result, in order."""
    return [result] if isinstance(result, Tensor) else [t for part in result for t in _tensors(part)]
