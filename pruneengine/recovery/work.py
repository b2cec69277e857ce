"""The folder in which a run keeps its checkpoints, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pruneengine.common.files import check_writable, in_words, write_atomically

RUN_FILE = "run.json"
# transformers' Trainer writes this file last of a checkpoint.
STATE_FILE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def work_folder(out: Path) -> Path:
    """Where a recovery into the checkpoint folder ``out`` keeps its state: beside it, on the same disk."""
    out = Path(out).expanduser().resolve()
    return out.with_name(f"{out.name}.recovery")


def open_work(folder: Path, run: Mapping[str, Any]) -> Path | None:
    """Make the folder, or go on in it.

    Args:
        folder: the work folder.
        run: what makes the run, flat and plain: a run with another value anywhere is another run.

    Returns:
        The newest whole checkpoint, or None. Broken ones, left by a kill in the middle of a write, are removed.

    Raises:
        ValueError: the folder holds another run (it says what differs), or files that are no run at all.
        PermissionError: it cannot be written to.
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
    """Refuse a folder that :func:`open_work` would refuse; nothing is written.

    Args:
        folder: the work folder.
        run: as of :func:`open_work`.
        unknown: names of values that are not known yet, and not compared.

    Raises:
        ValueError, PermissionError: as :func:`open_work`.
    """
    check_writable(folder)
    file = folder / RUN_FILE
    if not file.exists() and folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"work folder {folder} holds other things than a recovery and is not used: move them, or choose another"
        )
    if list_checkpoints(folder):
        _check_same(file, json.loads(json.dumps(run)), unknown)


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints, by step."""
    found = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and _whole(path)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def whole_or_nothing(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint that could not be written to its end.

    Raises:
        OSError: whatever the writers raise on a full disk (torch's is a RuntimeError), with what is kept.
    """
    try:
        yield
    except BaseException as error:
        # It may be whole: the oldest one is removed last.
        if not _whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
        # safetensors has an error type of its own, known only by name where it is not installed.
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
    """Whether the checkpoints kept at a time fit: the adapters and AdamW's two moments, three times.

    Raises:
        OSError: they do not.
    """
    needed, free = 9 * trained_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"checkpoints of {in_words(needed)} do not fit in {folder}: {in_words(free)} free")


def _check_same(file: Path, plain: Mapping[str, Any], unknown: Collection[str]) -> None:
    try:
        held = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}); delete the folder to begin anew") from None
    names = (plain.keys() | held.keys()) - set(unknown)
    differ = sorted(name for name in names if plain.get(name) != held.get(name))
    if differ:
        changes = ", ".join(f"{name} {held.get(name)!r}, now {plain.get(name)!r}" for name in differ)
        raise ValueError(
            f"work folder {file.parent} holds an unfinished run with other settings: {changes}; repeat it with the "
            "same ones, or delete the folder to begin anew"
        )


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True
