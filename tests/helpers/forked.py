"""Child processes for tests, forked from one parent that has torch and transformers imported already.

A process that imports both anew takes seconds, and the tests start dozens. :func:`replace_children` puts forked
processes in the place of two kinds that the package starts: those of reload proofs and those of searches with several
workers. Tests with the mark ``fresh_process`` start both for real.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    # Every child imports this file.
    import pytest

RELOAD_CHILD = Path(__file__).parents[2] / "pruneengine" / "checkpoint" / "reload_child.py"
# Nothing of pruneengine: the reload proof runs without it.
PRELOADED = [
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.dynamic_module_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
    "safetensors.torch",
    "optuna",
]


@dataclass
class Switch:
    """Switch between forked children and fresh ones.

    Attributes:
        forks: children are forked; False within a test with the mark ``fresh_process``.
    """

    forks: bool


def replace_children(patch: pytest.MonkeyPatch, switch: Switch) -> None:
    """Fork the children of proofs and searches from the parent, while the switch is on."""
    import torch.multiprocessing

    run_fresh, context_of = subprocess.run, torch.multiprocessing.get_context
    script = RELOAD_CHILD.read_text(encoding="utf-8")

    def run(command: Any, *arguments: Any, **options: Any) -> subprocess.CompletedProcess:
        if switch.forks and isinstance(command, list) and command == [sys.executable, "-c", script]:
            assert options.pop("capture_output")
            assert options.pop("text")
            return run_script(script, *arguments, **options)
        return run_fresh(command, *arguments, **options)

    def get_context(method: str | None = None) -> BaseContext:
        return parent() if switch.forks and method == "spawn" else context_of(method)

    patch.setattr(subprocess, "run", run)
    patch.setattr(torch.multiprocessing, "get_context", get_context)


@cache
def parent() -> multiprocessing.context.ForkServerContext:
    """Return the context whose children come from the parent; the first child starts it."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Read at import by what is preloaded.
    with mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}):
        os.environ.pop("TRITON_INTERPRET", None)
        forkserver.ensure_running()
    return context


def run_script(script: str, *, cwd: str | Path, env: Mapping[str, str], input: str = "") -> subprocess.CompletedProcess:
    """Run a script as :func:`subprocess.run` runs ``python -c script``, in a forked process; capture what it prints."""
    with tempfile.TemporaryDirectory() as scratch:
        streams = Path(scratch) / "stdin", Path(scratch) / "stdout", Path(scratch) / "stderr"
        streams[0].write_text(input)
        process = parent().Process(target=_run, args=(script, tuple(map(str, streams)), str(cwd), dict(env)))
        process.start()
        process.join()
        out, err = (stream.read_text() if stream.exists() else "" for stream in streams[1:])
    return subprocess.CompletedProcess([sys.executable, "-c", script], process.exitcode, out, err)


def _run(script: str, streams: tuple[str, str, str], cwd: str, env: Mapping[str, str]) -> None:
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (stream, flag) in enumerate(zip(streams, flags, strict=True)):
        os.dup2(os.open(stream, flag), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, "rw"[number > 0]) for number in range(3))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    # transformers has read this one at import.
    if cache := env.get("HF_MODULES_CACHE"):
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.") and "HF_MODULES_CACHE" in vars(module):
                module.HF_MODULES_CACHE = cache
    execute: Callable[..., None] = exec
    execute(compile(script, "<string>", "exec"), {"__name__": "__main__"})
