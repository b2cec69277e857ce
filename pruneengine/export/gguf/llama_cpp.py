"""llama.cpp's own logits for a GGUF file, through llama-cpp-python where that is installed.

It takes minutes to compile and pins nothing that pruneengine uses, so it may live in an environment of its own: the
environment variable LLAMA_CPP_PYTHON names that environment's interpreter. Without it, this one's packages are looked
at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneengine.checkpoint.reload_proof import ReloadError

PACKAGE = "llama-cpp-python"
VARIABLE = "LLAMA_CPP_PYTHON"
CHILD = Path(__file__).with_name("llama_cpp_child.py")


def interpreter() -> str:
    """The Python that llama.cpp runs in."""
    return os.environ.get(VARIABLE) or sys.executable


def missing() -> str | None:
    """Why llama.cpp cannot be run here, or None if it can."""
    if _version(interpreter()):
        return None
    named = os.environ.get(VARIABLE)
    return f"{VARIABLE}={named} is no Python that has {PACKAGE}" if named else f"{PACKAGE} is not installed"


def version() -> str:
    """Of llama-cpp-python."""
    return _version(interpreter())


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
        _run(file, tokens=tokens.tolist(), threads=torch.get_num_threads(), out=str(out))
        return torch.from_numpy(np.load(out))


def token_ids(file: Path, text: str) -> list[int]:
    """llama.cpp's own tokenization of ``text``, special tokens added as the file says; ReloadError as above."""
    return json.loads(_run(file, text=text).splitlines()[-1])


def _run(file: Path, **job: Any) -> str:
    done = subprocess.run(
        [interpreter(), "-c", CHILD.read_text(encoding="utf-8")],
        input=json.dumps({"file": str(file.resolve())} | job),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ReloadError(f"llama.cpp does not run {file.name}: {reason}")
    return done.stdout


@cache
def _version(python: str) -> str:
    """Empty where it is not installed. Asked of the interpreter: its packages need not be this one's."""
    question = f"import importlib.metadata as m; print(m.version({PACKAGE!r}))"
    try:
        done = subprocess.run([python, "-c", question], capture_output=True, text=True)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()
