"""How a job writes its checkpoint, and what its report says of that."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pruneengine.checkpoint.write import SavedCheckpoint, save
from pruneengine.common.progress import Stopwatch
from pruneengine.jobs.options import CheckpointOptions, JobOptions


def save_checkpoint(
    model: nn.Module,
    tokenizer: Any,
    options: CheckpointOptions,
    clock: Stopwatch,
    say: Callable[[str], None],
    **contents: Any,
) -> SavedCheckpoint:
    """Save into ``options.out``, and prove it where that is asked for; ``clock`` gains "save".

    Args:
        model: as it is to be saved.
        tokenizer: of the model.
        options: where to, whether to overwrite, and whether to prove.
        clock: of the job.
        say: told where the checkpoint goes.
        contents: what else :func:`pruneengine.checkpoint.write.save` takes.

    Raises:
        ValueError, OSError, RuntimeError: as :func:`pruneengine.checkpoint.write.save`.
    """
    say(f"saving {options.out}" + (", and reopening it in a fresh process" if options.proof else ""))
    with clock("save"):
        return save(model, tokenizer, options.out, overwrite=options.overwrite, proof=options.proof, **contents)


@contextmanager
def training_kept(work: Path) -> Iterator[None]:
    """Remove the work folder of a training once its model is saved in the block; say where it is if that fails.

    Raises:
        OSError, RuntimeError: whatever the block raises, with what is kept.
    """
    try:
        yield
    except Exception as error:
        kind, mended = (OSError, "make room") if isinstance(error, OSError) else (RuntimeError, "mend that")
        raise kind(f"{error}. The training is kept in {work}: {mended} and repeat the command") from error
    shutil.rmtree(work, ignore_errors=True)


def proof_values(saved: SavedCheckpoint) -> dict[str, Any]:
    """The proof as a report holds it, where there is one."""
    return {} if saved.proof is None else {"proof": asdict(saved.proof)}


def ending(options: JobOptions, saved: SavedCheckpoint, text: str | None, seconds: dict[str, float]) -> dict[str, Any]:
    """What the report of a prune of either kind closes with: the evaluation text, proof, continuation and times."""
    values = options.evaluation | proof_values(saved)
    if text is not None:
        values |= {"prompt": options.prompt, "continuation": text}
    return values | {"seconds": dict(seconds)}
