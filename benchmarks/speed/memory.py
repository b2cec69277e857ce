"""Peak memory of Taylor pruning against one backward pass with weight gradients, each in a fresh process.

The model is random and its weights outweigh the activations of the few tokens, as they do in large models. LLM-Pruner
needs a gradient as large as the weights; pruneengine needs at most that of one layer. The value is the peak resident
memory above that of the process with the model loaded, so it does not contain the weights. The allocator returns freed
memory at once: the value counts memory that was in use at one time, not memory kept for later.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import pruneengine
from benchmarks.common.models import random_llama
from benchmarks.speed import statistics_pass
from benchmarks.speed.compare import Target
from pruneengine.bench.environment import ROOT, versions
from pruneengine.bench.record import GateError, Row, Setting
from pruneengine.bench.timing import interleave

BASE = "full backward"
METHODS = ("vectorize", "param_first", "param_mix")
TARGETS = tuple(Target("above the model", method, BASE, 1 / 4) for method in METHODS)
SAMPLES, BATCH, LENGTH = 8, 2, 32
MB = 1e6


def measure(rounds: int, threads: int) -> list[Row]:
    """Rows of the peak above the loaded model: in MB, in units of the weights, and of one layer's gradient."""
    if not Path("/proc/self/clear_refs").exists():
        raise OSError("peak memory is read from /proc/self, which only Linux has")
    setting = Setting.here("memory", threads)
    timed = {name: lambda name=name: _fresh_process(name, threads) for name in JOBS}
    rows = []
    for name, measured in interleave(timed, rounds, warmup=0).items():
        case = f"Llama {measured.pop('weights')[0]:.0f} MB float32, {SAMPLES}x{LENGTH} tokens, batch {BATCH}"
        for quantity, unit in UNITS.items():
            rows.append(setting.row(case, name, quantity, unit, measured[quantity], versions("torch", "transformers")))
    return rows


UNITS = {"above the model": "MB", "above / weights": "ratio", "above / layer gradient": "ratio"}


def _fresh_process(name: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.speed.memory", name, str(threads)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def taylor_prune(method: str) -> Callable[[nn.Module, Tensor], None]:
    def job(model: nn.Module, tokens: Tensor) -> None:
        before = sum(p.numel() for p in model.parameters())
        pruneengine.prune(model, tokens, pruneengine.PruneConfig(method, 0.2, batch_size=BATCH))
        if not sum(p.numel() for p in model.parameters()) < before:
            raise GateError(f"{method} removed nothing")

    return job


def full_backward(model: nn.Module, tokens: Tensor) -> None:
    statistics_pass.full_backward(model, tokens.split(BATCH))
    if any(p.grad is None for p in model.parameters()):
        raise GateError("a weight has no gradient after the full backward pass")


JOBS: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "forward": lambda model, tokens: statistics_pass.forward(model, tokens.split(BATCH)),
    "frozen backward": lambda model, tokens: statistics_pass.frozen_backward(model, tokens.split(BATCH)),
    "full backward": full_backward,
    **{method: taylor_prune(method) for method in METHODS},
}


def peak(job: Callable[[nn.Module, Tensor], None], model: nn.Module, tokens: Tensor) -> dict[str, float]:
    """MB of the weights, and the job's peak above the loaded model in MB, in weights and in layer gradients.

    The gradient of a layer is float32 whatever the weights are. Linux only: the kernel's own high-water mark is reset
    before and read after, so nothing is missed between samples.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    layer = 4 * sum(p.numel() for p in model.get_decoder().layers[0].parameters() if p.dim() == 2)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    job(model, tokens)
    above = _resident("VmHWM") - before
    return {
        "weights": weights / MB,
        "above the model": above / MB,
        "above / weights": above / weights,
        "above / layer gradient": above / layer,
    }


def _resident(field: str) -> int:
    """Bytes of VmRSS, now, or VmHWM, the most since the last reset."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main() -> None:
    name, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = random_llama()
    tokens = torch.randint(model.config.vocab_size, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    print(json.dumps(peak(JOBS[name], model, tokens)))


if __name__ == "__main__":
    main()
