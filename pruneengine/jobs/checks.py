"""What every job that writes a checkpoint refuses before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pruneengine.checkpoint.write import check_output
from pruneengine.data.windows import check_spec


def check_out(out: Path, overwrite: bool, source: str) -> Path:
    """The absolute path of ``out`` if a checkpoint made of ``source`` can be written there.

    Raises:
        ValueError: it is the model itself.
        OSError: as :func:`pruneengine.checkpoint.write.check_output`.
    """
    path = check_output(out, overwrite)
    if path == Path(source).expanduser().resolve():
        raise ValueError(f"output folder {path} is the model itself; choose another")
    return path


def refuse_recovery(recover: Any) -> None:
    """ValueError where a sparse model is to be trained."""
    if recover is not None:
        raise ValueError(
            "recovery trains LoRA, and merging it would fill the zeros of a sparse model: without --recover"
        )


def check_evaluation(text: str | None, seqlen: int, windows: int | None, default: int = 16) -> int | None:
    """How many windows of an evaluation text to take, where there is one: as :func:`check_spec`.

    Raises:
        ValueError: a text that does not exist, or windows of less than two tokens.
    """
    if not text:
        return windows
    settled = check_spec(text, windows, default=default)
    if seqlen < 2:
        raise ValueError(f"evaluation windows of {seqlen} token(s): expected at least 2")
    return settled
