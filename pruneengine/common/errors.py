"""Errors that their message lets the user mend; the command line prints them in one line."""

from __future__ import annotations

import re

# The type or the message of an error of too little memory: Python's, and torch's on a CPU and on a GPU.
OUT_OF_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|can't allocate memory|not enough memory")


class PruneengineError(Exception):
    """Base of the errors that are raised where a fault is known, with the value and what was expected.

    Errors of the operating system (OSError) and missing packages (ImportError) keep their own types.
    """


class InputError(PruneengineError, ValueError):
    """A value, a file or a combination of options that cannot be used."""


class InputTypeError(PruneengineError, TypeError):
    """A value of another type than expected."""


class StageError(PruneengineError, RuntimeError):
    """A stage of a job that failed; the message says what is kept, and where."""


class NotFiniteError(PruneengineError, FloatingPointError):
    """A loss, score or gradient that is NaN or infinite."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the error says that memory has run out."""
    return OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}") is not None
