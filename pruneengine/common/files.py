"""Atomic writing of files, and checks of a folder before it is written to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(folder: Path) -> None:
    """Raise PermissionError if no file can be made in ``folder``, or in its nearest parent that exists."""
    parent = nearest_folder(folder)
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise PermissionError(f"cannot write to {parent}: {error.strerror}") from None


def nearest_folder(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError if ``needed`` bytes do not fit on the disk of ``folder``, which need not exist."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    if free < needed * 1.02:
        raise OSError(f"{in_words(needed)} of weights do not fit in {folder.parent}: {in_words(free)} free")


def in_words(size: float) -> str:
    """Return a number of bytes as ``12.3 kB``, ``538.1 MB`` or ``1.10 GB``, decimal."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of a file, so that a process that reads it and writes it again loses nothing of another's.

    The lock is a hidden file beside it, ``.NAME.lock``; the system gives it back when its process ends.
    """
    # A dependency of torch, read here so that the kernels alone never load it.
    from filelock import FileLock

    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write to a temporary neighbour and rename it, so that a failure leaves the old file, or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
