"""Checks of a job's options that need no model: evaluation text, recovery of a sparse model."""

from __future__ import annotations

from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.data.windows import check_spec


def check_evaluation(text: str | None, seqlen: int, windows: int | None, default: int = 16) -> int | None:
    """Return the number of windows to take of an evaluation text, as :func:`check_spec`; ``windows`` without a text.

    Raises:
        ValueError: the text does not exist, or windows are fewer than one or have fewer than two tokens.
    """
    if not text:
        return windows
    if windows is not None and windows < 1:
        raise InputError(f"{windows} evaluation windows: expected at least 1")
    settled = check_spec(text, windows, default=default, role="evaluation")
    if seqlen < 2:
        raise InputError(f"evaluation windows of {seqlen} token(s): expected at least 2")
    return settled


def refuse_recovery(recover: Any) -> None:
    """Raise ValueError if a recovery (anything but None) is asked for a sparse model."""
    if recover is not None:
        raise InputError(
            "recovery trains LoRA, and merging it would fill the zeros of a sparse model: without --recover"
        )
