"""The correctness gate: what does not compute what the specification says is not timed.

What is expected is cloned: a formula that returns a buffer of its own shares it with all who run the formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruneengine.bench.case import Agree, Case, Inputs, Work, cloned
from pruneengine.bench.providers import Provider, providers_of


def failures(case: Case, inputs: Inputs, names: list[str]) -> dict[str, str]:
    """``{provider: why it fails}`` on the case's small odd shape, against float64 or the exact specification.

    torch.compile is judged as timed alone: each shape is compiled anew, for seconds.
    """
    names = [name for name in names if name != "compile"]
    work = case.make(inputs, case.gate)
    expected = cloned(work.specified())
    judged = {p.name: _judge(p, work, expected, p.agree) for p in providers_of(case, work, names)}
    return {name: reason for name, reason in judged.items() if reason}


def failures_as_timed(work: Work, providers: Sequence[Provider]) -> dict[str, str]:
    """The same on the shape that is timed, of all but eager torch, against the formula in float32."""
    expected = cloned(work.reference(*work.inputs))
    loosely = work.loosely or work.agree
    judged = {p.name: _judge(p, work, expected, loosely) for p in providers if p.ours or p.name == "compile"}
    return {name: reason for name, reason in judged.items() if reason}


def _judge(provider: Provider, work: Work, expected: object, agree: Agree) -> str | None:
    try:
        with provider.ready():
            reason = agree(provider.bind(work)(), expected)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:  # whatever a backend, a compiler or a device raises: it does not compute the op
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return reason
