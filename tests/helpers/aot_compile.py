"""Ahead-of-time compilation of every Triton kernel for one target, as its real launches would compile it.

:func:`main` runs in a process without TRITON_INTERPRET, needs no GPU and prints JSON.

The launchers run on meta tensors with the launch itself replaced by a recorder, so grids, constants and warps are those
of a real call and cannot drift from it.
"""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import pruneengine.kernels

TARGETS = {"80": GPUTarget("cuda", 80, 32), "90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
# Targets differ in the instructions for large inputs; odd sizes and single elements are compiled for this one alone.
EVERY_CASE = "90"
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.uint8: "*u8"}
POINTERS |= {torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64"}
MODULES = {
    name: import_module(f"pruneengine.kernels.{name}")
    for _, name, _ in pkgutil.iter_modules(pruneengine.kernels.__path__)
}


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cases() -> Iterator[tuple[str, Callable[..., Any], tuple]]:
    """Yield every launch to compile: a case, the launcher and its arguments.

    ``wide`` has the sizes of a 7B model and must stream with 16-byte loads; ``odd`` allows none; ``one`` is there
    because Triton compiles an argument of 1 as a constant. ``several`` is added for several scores from one read.
    """
    stats, gate = MODULES["activation_stats"].activation_stats, MODULES["gate_scores"].gate_scores
    weights, taylor = MODULES["weight_scores"].weight_scores, MODULES["taylor_scores"].taylor_scores
    outer, moments = MODULES["taylor_scores_outer"].taylor_scores_outer, MODULES["block_moments"].block_moments
    kth, select = MODULES["select"].kth_value, MODULES["select"].select_mask
    wide, odd, one = ("wide", 4, 4096, 11008), ("odd", 3, 37, 1001), ("one", 1, 1, 1)
    float32, bfloat16 = torch.float32, torch.bfloat16
    for (case, n, r, c), dtype in ((wide, float32), (wide, bfloat16), (odd, bfloat16), (one, bfloat16)):
        x, w, norms = meta(n, r, c, dtype=dtype), meta(r, c, dtype=dtype), meta(8, c, dtype=float32)
        yield case, stats, (x,)
        yield case, gate, (x, x)
        yield case, weights, (w, None, [1.0], [1.0])
        yield case, weights, (w, norms[:1], [1.0], [1.0])
        yield case, weights, (w, norms[:1], [0.5], [1.5])
        yield f"{case} several", weights, (w, norms, [1.0, 2.0, 0.5, 1.5, 1.0, 1.7, 0.3, 3.0], [1.0] * 8)
        yield case, taylor, (w, w)
        yield case, taylor, (w, meta(r, c, dtype=float32))
        yield case, taylor, (w, w, True)
        delta, inputs = meta(n, r // 2 + 1, r, dtype=dtype), meta(n, r // 2 + 1, c, dtype=dtype)
        yield case, outer, (w, delta, inputs, False)
        yield case, outer, (w, delta, inputs, True)
        yield case, moments, (w, None, 1.0, 1.0, meta(0, dtype=float32))
        if dtype == bfloat16:
            yield case, moments, (w, norms[0], 0.5, 1.0, meta(16, dtype=float32))
        yield case, kth, (w, c // 2 + 1)
        yield case, select, (w, 1)
        yield case, select, (w, c // 2 + 1, norms[0], True)
        yield from ((case, launcher, arguments) for launcher, arguments in selections(case, w, norms[0]))


def selections(case: str, w: Tensor, norm: Tensor) -> Iterator[tuple[Callable[..., Any], tuple]]:
    """Yield the launches of selection over matrices and of sparse weights. Groups of 7 leave lanes empty."""
    codes, n, m = torch.empty_like(w, dtype=torch.uint8), *{"wide": (2, 4), "odd": (3, 7), "one": (1, 1)}[case]
    yield MODULES["select_global"].kth_value_global, ([w], 1)
    yield MODULES["select_global"].select_mask_global, ([w, w], 1)
    yield MODULES["select_global"].select_mask_global, ([w], 1, [norm], True)
    yield MODULES["nm_mask"].nm_mask, (w, n, m)
    yield MODULES["nm_mask"].nm_apply, (w, 2 * n, 2 * m, norm, w)
    yield MODULES["quantile_codes"].quantile_codes, (w, norm)
    yield MODULES["masked_copy"].masked_copy, (w, codes, 128, w)


def record(
    launcher: Callable[..., Any], arguments: tuple, target: GPUTarget
) -> list[tuple[JITFunction, tuple, dict[str, Any]]]:
    """Return the launches that a launcher makes where torch was built for the target; none is carried out."""
    launches = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((self, args, kwargs))

    original, JITFunction.run = (JITFunction.run, torch.version.hip), run
    torch.version.hip = "7.0" if target.backend == "hip" else None
    try:
        launcher(*arguments)
    finally:
        JITFunction.run, torch.version.hip = original
    return launches


def source_of(fn: JITFunction, args: tuple, kwargs: dict[str, Any]) -> tuple[ASTSource, dict[str, Any]]:
    """Derive types, constants and divisibility from a launch's arguments, as Triton's own specialisation does."""
    values = dict(zip(fn.arg_names, args, strict=False)) | kwargs
    options = {name: values.pop(name) for name in kwargs if name not in fn.arg_names}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(fn.params):
        value = values[parameter.name]
        is_int = isinstance(value, int)
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_int and special and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        elif isinstance(value, tuple):
            signature[parameter.name] = ("fp32",) * len(value)
        else:
            signature[parameter.name] = ("i32" if value < 2**31 else "i64") if is_int else "fp32"
        if isinstance(value, Tensor) or (is_int and special and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(fn, signature, constants, attributes), options


def cuda_usage(asm: dict[str, Any]) -> dict[str, Any]:
    """Count registers, bytes spilled, and loads by kind: to registers, or to shared memory with their bytes in hex."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    loads = Counter(re.findall(r"\bld\.global[.\w:]*", asm["ptx"]))
    loads += Counter(
        f"cp.async {size}" for size in re.findall(r"\bcp\.async\.c[ag]\.shared\.global .*?(0x\w+)", asm["ptx"])
    )
    return {"registers": usage["REG"], "spills": usage["STACK"] + usage["LOCAL"], "loads": loads}


def hip_usage(asm: dict[str, Any]) -> dict[str, Any]:
    usage = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s*(\d+)", asm["amdgcn"])}
    loads = Counter(re.findall(r"\b(?:global|buffer)_load_\w+", asm["amdgcn"]))
    # A scalar register spills to a lane of a vector register, not to memory, and does not count.
    return {"registers": usage["vgpr_count"], "spills": usage["vgpr_spill_count"], "loads": loads}


def uncovered(launched: set[JITFunction]) -> list[str]:
    """Return the names of the jit functions that no launched kernel is or calls."""
    functions = {f for module in MODULES.values() for f in vars(module).values() if isinstance(f, JITFunction)}
    reached = launched & functions
    while True:
        called = {f for f in functions - reached if any(re.search(rf"\b{f.__name__}\(", g.src) for g in reached)}
        if not called:
            return sorted(f.__name__ for f in functions - reached)
        reached |= called


def main(name: str) -> None:
    target = TARGETS[name]
    compiled, launched, seen = [], set(), set()
    for case, launcher, arguments in cases():
        if not (case.startswith("wide") or name == EVERY_CASE):
            continue
        for fn, args, kwargs in record(launcher, arguments, target):
            launched.add(fn)
            source, options = source_of(fn, args, kwargs)
            if (case, source.hash(), str(options)) in seen:
                continue
            seen.add((case, source.hash(), str(options)))
            pointers = " ".join(kind for kind in source.signature.values() if kind[0] == "*")
            row = {"kernel": fn.__name__, "case": f"{case} {pointers}", "target": name}
            try:
                kernel = triton.compile(source, target=target, options=options)
            except Exception as error:  # reported as a row: one bad kernel must not hide the others
                compiled.append(row | {"error": f"{type(error).__name__}: {error}"})
                continue
            usage = cuda_usage(kernel.asm) if target.backend == "cuda" else hip_usage(kernel.asm)
            compiled.append(row | usage | {"shared": kernel.metadata.shared})
    print(json.dumps({"compiled": compiled, "uncovered": uncovered(launched)}))
