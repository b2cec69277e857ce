"""llama.cpp's own logits for a GGUF file, through llama-cpp-python where that is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneengine.reload import ReloadError

PACKAGE = "llama-cpp-python"
CHILD = Path(__file__).with_name("llama_cpp_child.py")


def missing() -> str | None:
    """Why llama.cpp cannot be run here, or None if it can."""
    return None if importlib.util.find_spec("llama_cpp") else f"{PACKAGE} is not installed"


def version() -> str:
    """Of llama-cpp-python."""
    return importlib.metadata.version(PACKAGE)


def logits(file: Path, tokens: Tensor) -> Tensor:
    """What llama.cpp computes on the CPU, in a process of its own, which it ends where a file is not as it expects.

    Args:
        file: a GGUF file.
        tokens: int64 ``(rows, length)``.

    Returns:
        float32 ``(rows, length, vocabulary)``.

    Raises:
        ReloadError: llama.cpp does not open the file, or stops.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.npy"
        _run(file, tokens=tokens.tolist(), out=str(out))
        return torch.from_numpy(np.load(out))


def token_ids(file: Path, text: str) -> list[int]:
    """llama.cpp's own tokenization of ``text``, special tokens added as the file says; ReloadError as above."""
    return json.loads(_run(file, text=text).splitlines()[-1])


def _run(file: Path, **job: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.read_text(encoding="utf-8")],
        input=json.dumps({"file": str(file.resolve())} | job),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ReloadError(f"llama.cpp does not run {file.name}: {reason}")
    return done.stdout
