"""Output folders: which may be replaced, and how a finished result takes its place."""

from __future__ import annotations

import ctypes
import fnmatch
import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pruneengine.common.errors import InputError
from pruneengine.common.files import check_writable

# Names of the files that a checkpoint or an export of ours holds; whatever else lies in a folder is somebody's own.
OUR_FILES = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "modeling_pruned.py"),
    *("plan.json", "function.json", "recipe.yaml", "report.json", "report.html", "results.json", "README.md"),
    # A tokenizer with code of its own brings that along.
    *("tokenizer*", "tokenization_*.py", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *("*.model", "chat_template*", "additional_chat_templates", "__pycache__", ".results.json.lock"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("export.json", "*.gguf", "configuration_decilm.py"),
)
OWNER_FILE = ".owner"
SHOWN = 3
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class OutputFolder:
    """A folder that a result may take.

    Attributes:
        path: absolute.
        replaces: identity of the earlier result that the result may replace, or None where the folder must be free.
    """

    path: Path
    replaces: tuple[int, int, int] | None = None


def claim_output(
    out: str | Path,
    overwrite: bool = False,
    *,
    mark: str = "config.json",
    inputs: Iterable[str | Path] = (),
    extra_files: Collection[str] = (),
) -> OutputFolder:
    """Return where a result may go; call it before any work, and hand the value to :func:`finished_folder`.

    Args:
        out: the folder to create.
        overwrite: an earlier result of ours may be replaced.
        mark: the file that tells an earlier result of the same kind.
        extra_files: names of files that the result holds besides those that every result of ours may hold.
        inputs: what the run reads or keeps beside its result; none of it may lie in ``out``.

    Raises:
        ValueError: an input is the folder, or lies in it.
        FileExistsError: a file; a mount point; a folder with content without ``overwrite``; or one that holds files
            that are not ours, which the message names.
        PermissionError: the folder that ``out`` lies in cannot be written to.
    """
    path = Path(out).expanduser().resolve()
    for given in inputs:
        _check_apart(path, Path(given).expanduser().resolve(), given)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"output {path} is a file, expected a folder")
    if path.is_mount():
        raise FileExistsError(f"output folder {path} is a mount point, which is never replaced: name a folder in it")
    check_writable(path.parent)
    if not path.is_dir() or not any(path.iterdir()):
        return OutputFolder(path)
    if not overwrite:
        raise FileExistsError(f"output folder {path} is not empty; pass overwrite=True (--overwrite) to replace it")
    if not (path / mark).is_file():
        what = "a model" if mark == "config.json" else f"an earlier result (no {mark})"
        raise FileExistsError(f"output folder {path} holds other things than {what}; it is not replaced")
    if not _written_by_us(path):
        raise FileExistsError(f"output folder {path} holds a model that pruneengine did not write; it is not replaced")
    if foreign := _foreign(path, extra_files):
        shown = ", ".join(foreign[:SHOWN]) + (f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else "")
        raise FileExistsError(f"output folder {path} holds what pruneengine did not write ({shown}): not replaced")
    return OutputFolder(path, _identity(path))


@contextmanager
def finished_folder(output: OutputFolder) -> Iterator[Path]:
    """Give a temporary folder beside the output's, which takes its place if the block succeeds.

    The earlier result stays until then, and never is without a name. If the block fails, the temporary folder is
    removed and nothing has changed. If the place was taken meanwhile, the finished folder is kept beside it.

    Raises:
        FileExistsError: the place was taken while the block worked; the message says where the result is.
        OSError: the folder could not be moved there; likewise.
    """
    path = output.path
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    with open(folder / OWNER_FILE, "w") as owner:
        _lock(owner)
        owner.write(f"{socket.gethostname()} {os.getpid()}\n")
        owner.flush()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    (folder / OWNER_FILE).unlink(missing_ok=True)
    try:
        _take_place(folder, output)
    except OSError as error:
        kept = folder.with_name(f"{path.name}.finished{folder.name[len(path.name) + 1 :]}")
        folder.rename(kept)
        kind = FileExistsError if isinstance(error, FileExistsError) else OSError
        raise kind(f"{error.strerror or error}; the finished result is kept in {kept}") from error


def remove_leftovers(output: OutputFolder, say: Callable[[str], None]) -> None:
    """Remove temporary folders that killed runs into the same output left, and say which.

    Folders of runs that still live, or that ran on other machines, stay.
    """
    for folder in sorted(output.path.parent.glob(f".{glob.escape(output.path.name)}-*")):
        owner = folder / OWNER_FILE
        try:
            # For appending: a lock over a network needs a file that may be written.
            with open(owner, "a+") as file:
                free = _lock(file)
                file.seek(0)
                host, _, process = file.read().strip().partition(" ")
        except OSError:
            continue
        if not free:
            continue
        if host != socket.gethostname() or not process.isdecimal():
            say(f"{folder} belongs to a run on {host}, which was stopped or still works")
        elif not _alive(int(process)):
            say(f"removing {folder}, which a killed run left")
            shutil.rmtree(folder, ignore_errors=True)


def _check_apart(path: Path, other: Path, given: str | Path) -> None:
    """Raise ValueError where the input would go with what the output replaces, or fill it before its time."""
    if other == path:
        raise InputError(f"output folder {path} is what the run reads itself; choose another")
    if path in other.parents:
        raise InputError(f"output folder {path} holds {given}, which the run needs; choose another place")


def _written_by_us(path: Path) -> bool:
    """Return True for a folder with a plan, a recipe, an export's account, or a model card that names pruneengine."""
    if any((path / name).is_file() for name in ("plan.json", "recipe.yaml", "export.json")):
        return True
    card = path / "README.md"
    return card.is_file() and "pruneengine" in card.read_text(encoding="utf-8", errors="replace")


def _foreign(path: Path, ours: Collection[str]) -> list[str]:
    """Return the names of files and folders in an earlier result that we did not write."""
    names = sorted(entry.name for entry in path.iterdir())
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in (*OUR_FILES, *ours))]


def _identity(path: Path) -> tuple[int, int, int]:
    """Return what changes when a folder is replaced, or a file in it appears or goes."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns


def _take_place(folder: Path, output: OutputFolder) -> None:
    """Move a finished folder to the output's path, in place of what may be replaced and of nothing else."""
    path = output.path
    if output.replaces is None:
        # Fails where a folder with content, or a file, has appeared.
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} has appeared while this run worked")
        try:
            folder.rename(path)
        except OSError as error:
            if path.exists():
                raise FileExistsError(f"{path} has appeared while this run worked") from error
            raise
        return
    if not path.is_dir() or _identity(path) != output.replaces:
        raise FileExistsError(f"{path} has changed while this run worked, and is not replaced")
    if not _exchange(folder, path):
        old = path.with_name(f"{path.name}.replaced{folder.name[len(path.name) + 1 :]}")
        path.rename(old)
        try:
            folder.rename(path)
        except OSError:
            old.rename(path)
            raise
        folder = old
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _lock(file: TextIO) -> bool:
    """Lock a file until it is closed; False where another process holds it.

    A process number alone does not tell: containers with one host name have numbers of their own. Where the system or
    the file system knows no locks, it has to do, and the result is True.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
