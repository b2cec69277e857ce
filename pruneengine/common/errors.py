"""Errors that their message lets the user mend; the command line prints them in one line."""

from __future__ import annotations


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
