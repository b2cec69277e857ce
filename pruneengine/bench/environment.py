"""Environment of a measurement: processor, device, versions, commit, and the folder for results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" if (ROOT / "benchmarks").is_dir() else Path("pruneengine-bench")


def versions(*packages: str) -> str:
    """Return ``python 3.11.7 torch 2.13.0 ...`` for the interpreter and the installed ones of the packages."""
    named = [f"python {platform.python_version()}"]
    for package in packages:
        try:
            named.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return " ".join(named)


def cpu_name() -> str:
    """Return the processor's model name and the number of cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def device_name(device: torch.device) -> str:
    """Return the name of the processor or of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def commit() -> str:
    """Return the short hash of HEAD, with ``-dirty`` when a tracked file, results apart, differs from it.

    Outside of our own repository return the value of ``PRUNEENGINE_COMMIT``, or ``unknown``: an installed package may
    lie in a foreign repository.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            raise FileNotFoundError(f"{ROOT} is no repository")
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return head + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PRUNEENGINE_COMMIT", "unknown")
