"""Work folder of a run: its checkpoints, from which the same command continues a stopped run."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.common.files import check_writable, in_words, write_atomically

RUN_FILE = "run.json"
# The last file of a checkpoint that transformers' Trainer writes.
STATE_FILE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def work_folder(out: Path) -> Path:
    """Return the work folder of a recovery into the checkpoint folder ``out``: beside it, on the same disk."""
    out = Path(out).expanduser().resolve()
    return out.with_name(f"{out.name}.recovery")


@contextmanager
def given_or_temporary(folder: str | Path | None) -> Iterator[Path]:
    """Yield the given work folder, or a temporary one, which is kept only if the block fails after a checkpoint."""
    if folder is not None:
        yield Path(folder).expanduser().resolve()
        return
    work = Path(tempfile.mkdtemp(prefix=f"recovery-{time.strftime('%H%M%S')}-"))
    try:
        yield work
    except BaseException as error:
        if kept := list_checkpoints(work):
            error.add_note(f"checkpoints up to step {step_of(kept[-1])} are in {work}; pass it as work_dir to go on")
            raise
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def open_work(folder: Path, run: Mapping[str, Any]) -> Path | None:
    """Create the work folder, or open it to continue its run.

    Args:
        folder: the work folder.
        run: values that identify the run, flat and plain; any other value makes another run.

    Returns:
        The newest whole checkpoint, or None. Broken checkpoints, left by a kill during a write, are removed.

    Raises:
        ValueError: the folder holds another run (the message says what differs), or files of something else.
        PermissionError: the folder cannot be written to.
    """
    check_work(folder, run)
    whole = list_checkpoints(folder)
    if not whole:
        write_atomically(folder / RUN_FILE, json.dumps(run, indent=2) + "\n")
    for path in folder.glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path)
    return whole[-1] if whole else None


def check_work(folder: Path, run: Mapping[str, Any], unknown: Collection[str] = ()) -> None:
    """Raise the error that :func:`open_work` would raise, and write nothing.

    Args:
        folder: the work folder.
        run: as for :func:`open_work`.
        unknown: names of values that are not known yet; they are not compared.

    Raises:
        ValueError, PermissionError: as :func:`open_work`.
    """
    check_writable(folder)
    file = folder / RUN_FILE
    if not file.exists() and folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"work folder {folder} holds other things than a recovery and is not used: move them, or choose another"
        )
    if list_checkpoints(folder):
        _check_same(file, json.loads(json.dumps(run)), unknown)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints, sorted by step."""
    whole = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and _whole(path)]
    return sorted(whole, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def whole_or_nothing(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint that could not be written to its end.

    Raises:
        OSError: the writers failed, as on a full disk (torch raises a RuntimeError there); the message names the state
            that is kept.
    """
    try:
        yield
    except BaseException as error:
        # The checkpoint may be whole: after it, the writer removes the oldest one.
        if not _whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
        # The error of safetensors is known by name only, because safetensors need not be installed.
        if not isinstance(error, (OSError, RuntimeError)) and type(error).__name__ != "SafetensorError":
            raise
        kept = list_checkpoints(checkpoint.parent)
        where = f"the state of step {step_of(kept[-1])} is kept in {kept[-1]}" if kept else "no earlier state was kept"
        free = shutil.disk_usage(checkpoint.parent).free
        raise OSError(
            f"the checkpoint of step {step_of(checkpoint)} could not be written ({in_words(free)} free): {error}; "
            f"{where}; make room and repeat the command to go on"
        ) from error


def check_room(folder: Path, trained_bytes: int) -> None:
    """Raise OSError if the checkpoints kept at a time do not fit: three times the adapters and AdamW's two moments.

    Args:
        folder: the work folder.
        trained_bytes: bytes of the adapters.
    """
    needed, free = 9 * trained_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"checkpoints of {in_words(needed)} do not fit in {folder}: {in_words(free)} free")


def _check_same(file: Path, plain: Mapping[str, Any], unknown: Collection[str]) -> None:
    try:
        stored = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} cannot be read ({error}); delete the folder to begin anew") from None
    names = (plain.keys() | stored.keys()) - set(unknown)
    differ = sorted(name for name in names if plain.get(name) != stored.get(name))
    if differ:
        changes = ", ".join(f"{name} {stored.get(name)!r}, now {plain.get(name)!r}" for name in differ)
        raise InputError(
            f"work folder {file.parent} holds an unfinished run with other settings: {changes}; repeat it with the "
            "same ones, or delete the folder to begin anew"
        )


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True
