"""Providers of an op: eager torch, torch.compile of it, and our backends, each as a call without arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from pruneengine.bench.case import Agree, Case, Work
from pruneengine.ops import backends, extension

PROVIDERS = ("reference", "compile", "cpp", "triton", "cuda")
DEFAULT = {"cpu": ("reference", "cpp"), "cuda": ("reference", "compile", "triton", "cuda")}
OURS = ("cuda", "triton", "cpp")  # in the order in which a device's default is chosen


class Provider:
    """One way to compute a case's work, with the comparison that judges its result."""

    def __init__(self, name: str, run: Callable[..., object], agree: Agree, backend: str | None = None) -> None:
        self.name, self.agree, self._run, self._backend = name, agree, run, backend

    @property
    def ours(self) -> bool:
        """True for our own backends."""
        return self._backend is not None

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Let the provider's own backend run the ops within the context."""
        with backends.use_backend(self._backend) if self._backend else contextlib.nullcontext():
            yield

    def bind(self, work: Work) -> Callable[[], object]:
        """Return the call on the inputs of the work."""
        return lambda: self._run(*work.inputs)


def missing(name: str, device: torch.device) -> str | None:
    """Return the reason if a provider cannot run on this device at all, else None."""
    if name in ("reference", "compile"):
        return None
    if (name == "cpp") != (device.type == "cpu"):
        return f"it has no kernels for {device.type}"
    reason = backends.available_backends()[name]
    return None if reason == "available" else reason


def providers_of(case: Case, work: Work, names: list[str]) -> list[Provider]:
    """Return the providers in ``names`` that have the case's op; "reference" brings the case's other baselines."""
    loosely = work.loosely or work.agree
    providers: list[Provider] = []
    for name in names:
        if name == "reference":
            providers.append(Provider(name, work.reference, loosely))
            providers += [Provider(n, b.run, b.agree or work.agree) for n, b in work.baselines.items()]
        elif name == "compile" and case.compiled:
            providers.append(Provider(name, _compiled(work), loosely))
        elif has(name, case.op):
            providers.append(Provider(name, work.ours, work.agree, name))
    return providers


def has(name: str, op: str) -> bool:
    """Return True if it is one of our backends and has the op."""
    ops = {"cuda": extension.CUDA_OPS, "triton": backends.TRITON_MODULES}
    return name in OURS and op in ops.get(name, (op,))


def takes_part(name: str, case: Case) -> bool:
    """Return True if a provider can compute a case; eager torch always can."""
    return name == "reference" or has(name, case.op) or (name == "compile" and case.compiled)


def _compiled(work: Work) -> Callable[..., object]:
    reference = work.reference
    # Every case is a new function of one shape. Code compiled for others is of no use, and would make this one count as
    # a recompilation.
    torch.compiler.reset()
    return torch.compile(lambda *inputs: reference(*inputs), dynamic=False)


def replayed(call: Callable[[], object]) -> Callable[[], object]:
    """Capture the kernels of a call as one CUDA graph and return its replay, whose launches cost Python nothing."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
