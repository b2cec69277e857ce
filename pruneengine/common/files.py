"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def check_writable(folder: Path) -> None:
    """Whether files can be made in ``folder``, or in the nearest parent there is; PermissionError if not."""
    parent = next(f for f in (folder.absolute(), *folder.absolute().parents) if f.exists())
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise PermissionError(f"cannot write to {parent}: {error.strerror}") from None


def check_space(folder: Path, needed: int) -> None:
    """OSError if ``needed`` bytes do not fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        raise OSError(f"{in_words(needed)} of weights do not fit in {folder.parent}: {in_words(free)} free")


def in_words(size: float) -> str:
    """Bytes as ``12.3 kB``, ``538.1 MB`` or ``1.10 GB``, decimal."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write to a temporary neighbour and rename: after a failure the old file, or none, is there."""
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
