"""Client of a library that is measured in a process, and often a virtual environment, of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from pruneengine.bench.environment import ROOT


def interpreter(environment: Path) -> Path:
    """The Python of a virtual environment."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make_environment(folder: Path, requirements: Path, constraints: Path | None = None) -> None:
    """Create a virtual environment anew: torch first and as the project pins it, so that nothing pulls in another."""
    venv.create(folder, clear=True, symlinks=sys.platform != "win32", with_pip=True)
    pip = [interpreter(folder), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", "torch"], check=True)
    subprocess.run([*pip, *(["-c", constraints] if constraints else []), "-r", requirements], check=True)


class Worker:
    """A program that answers lines on its input with JSON lines; the first, unasked, says its ``versions``."""

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.versions: str = self._answer()["versions"]

    def ask(self, request: str) -> dict:
        """The answer to one line; RuntimeError with the program's last words where it ended instead."""
        with contextlib.suppress(BrokenPipeError):
            print(request, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self.name} ended: {self._errors.read().strip().splitlines()[-1:]}")
        return json.loads(line)
