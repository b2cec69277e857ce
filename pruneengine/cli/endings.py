"""Endings of a command: an error in one line, a log of what nobody expected, an orderly stop."""

from __future__ import annotations

import functools
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, ParamSpec

import typer

from pruneengine.cli.app import err
from pruneengine.common.errors import PruneengineError
from pruneengine.common.passwords import without_passwords

P = ParamSpec("P")

WRONG_INPUT, FAULT = 2, 1
KEPT = (
    "half-written files are removed; the same command goes on from what is kept (trials of a search, finished layers "
    "of a sparse prune, steps of a training)"
)


def ends_well(command: Callable[P, None]) -> Callable[P, None]:
    """Return a verb that ends in a line and an exit status, whatever happens in it.

    What the user can mend is one line and status 2. Anything else is written to a log file, whole, and told in a line
    with status 1. SIGINT and SIGTERM remove what is half-written and give 128 plus their number; a second one ends the
    process at once.
    """

    @functools.wraps(command)
    def run(*values: P.args, **named: P.kwargs) -> None:
        with _stops() as stopped_by:
            try:
                command(*values, **named)
            except typer.Exit:
                raise
            except (PruneengineError, OSError, ImportError) as error:
                _end(f"error: {' '.join(str(error).split())}", WRONG_INPUT)
            except KeyboardInterrupt:
                number = stopped_by[0] if stopped_by else signal.SIGINT
                _end(f"stopped by {signal.Signals(number).name}: {KEPT}", 128 + number)
            except Exception as error:
                _end(f"error: {_summary(error)}; this is a fault of pruneengine, {_log()}", FAULT)

    return run


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at the first SIGINT or SIGTERM, end the process at the second; yield their numbers."""
    numbers: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield numbers
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        numbers.append(number)
        if len(numbers) > 1:
            os._exit(128 + number)
        raise KeyboardInterrupt

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield numbers
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _end(line: str, status: int) -> NoReturn:
    err.print(without_passwords(line), style="bold red")
    sys.exit(status)


def _summary(error: Exception) -> str:
    lines = str(error).split("\n")
    return f"{type(error).__name__}: {lines[0].strip()}" if lines[0].strip() else type(error).__name__


def _log() -> str:
    """Write the error that is being handled to a new file, with the command and the versions; say where it is.

    Passwords are left out. Where no file can be written (a full disk is a common reason of the error itself), the error
    goes to standard error.
    """
    from pruneengine.jobs.versions import versions

    parts = {
        "command": " ".join(sys.argv),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "system": platform.platform(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    head = "".join(f"{name}: {value}\n" for name, value in parts.items())
    text = without_passwords(f"{head}\n{traceback.format_exc()}")
    path = None
    try:
        handle, path = tempfile.mkstemp(prefix="pruneengine-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        if path is not None:
            with suppress(OSError):
                os.unlink(path)
        err.print(text)
        return f"and no log of it can be written: {error.strerror}"
    return f"the whole of it is in {path}"
