"""Checks of a job's options that need no model: evaluation text, recovery of a sparse model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruneengine.checkpoint.load import local_config
from pruneengine.common.errors import InputError
from pruneengine.common.optional_imports import require_extra
from pruneengine.data.windows import check_spec
from pruneengine.model.checks import check_positions


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


def check_windows(source: str, windows: Mapping[str, int]) -> None:
    """Raise ValueError for windows that the model cannot read, before it is loaded; hub names are seen after it.

    Args:
        source: of the model.
        windows: tokens per window, by a name for the message.
    """
    with require_extra("hf"):
        check_positions(local_config(source), windows)


def refuse_recovery(recover: Any) -> None:
    """Raise ValueError if a recovery (anything but None) is asked for a sparse model."""
    if recover is not None:
        raise InputError(
            "recovery trains LoRA, and merging it would fill the zeros of a sparse model: without --recover"
        )
