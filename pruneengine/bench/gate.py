"""Correctness gate: a provider with results other than the specification's is not timed.

Expected results are cloned: a formula that returns a buffer of its own shares it with all who run the formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruneengine.bench.case import Agree, Case, Inputs, Work, cloned
from pruneengine.bench.providers import Provider, providers_of


def failures(case: Case, inputs: Inputs, names: list[str]) -> dict[str, str]:
    """Return ``{provider: reason}`` for failures on the small odd shape, against float64 or the exact specification.

    torch.compile is judged on the timed shape only: each shape is compiled anew, for seconds.
    """
    names = [name for name in names if name != "compile"]
    work = case.make(inputs, case.gate)
    expected = cloned(work.specified())
    judged = {p.name: _judge(p, work, expected, p.agree) for p in providers_of(case, work, names)}
    return {name: reason for name, reason in judged.items() if reason}


def failures_as_timed(work: Work, providers: Sequence[Provider]) -> dict[str, str]:
    """Return failures on the timed shape, of all providers but eager torch, against the formula in float32."""
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
    except Exception as error:  # of a backend, a compiler or a device: any of them means that the op is not computed
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return reason
