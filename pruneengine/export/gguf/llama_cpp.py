"""llama.cpp's own logits for a GGUF file, through llama-cpp-python if that is installed.

llama-cpp-python takes minutes to compile and pins nothing that pruneengine uses, so it may live in a virtual
environment of its own. The environment variable LLAMA_CPP_PYTHON names the interpreter there; the default is the
running interpreter.
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
    """Return the path of the Python interpreter that runs llama.cpp."""
    return os.environ.get(VARIABLE) or sys.executable


def missing() -> str | None:
    """Return the reason why llama.cpp cannot run here, or None if it can."""
    if _version(interpreter()):
        return None
    named = os.environ.get(VARIABLE)
    return f"{VARIABLE}={named} is no Python that has {PACKAGE}" if named else f"{PACKAGE} is not installed"


def version() -> str:
    """Return the version of llama-cpp-python, empty if it is not installed."""
    return _version(interpreter())


def logits(file: Path, tokens: Tensor) -> Tensor:
    """Return llama.cpp's logits, computed on the CPU in a process of its own.

    llama.cpp ends its process on a file that it does not expect.

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
    """Return the token ids that llama.cpp gives ``text``, with the special tokens that the file asks for.

    Raises:
        ReloadError: as :func:`logits`.
    """
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
    """Return the version of llama-cpp-python, empty if missing, in the packages of the given interpreter."""
    question = f"import importlib.metadata as m; print(m.version({PACKAGE!r}))"
    try:
        done = subprocess.run([python, "-c", question], capture_output=True, text=True)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()
