"""Text files of a user: whatever holds documents or rows, read as UTF-8, each fault named with its file and row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pruneengine.common.errors import InputError

STANDARD_INPUT = "-"
# By the end of the name, in any case; a compressed file has its own suffix behind one of them.
KINDS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".zst")
BYTE_ORDER_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
# Files that `datasets.save_to_disk` writes, for one split and for several.
SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")
# Rows of files that were checked before a model is loaded, until they are read after.
_kept: dict[tuple[Path, int, int], list[Any]] = {}


def kind_of(path: Path) -> str | None:
    """Return the suffix in :data:`KINDS` by which a file is read, or None for a file of another kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def is_text_source(name: str) -> bool:
    """Return True where ``name`` is standard input, a folder, or a file of a kind that can be read."""
    path = Path(name).expanduser()
    return name == STANDARD_INPUT or path.is_dir() or kind_of(path) is not None


def read_rows(name: str, *, keep: bool = False) -> list[Any]:
    """Read a source as rows: strings (paragraphs of running text), or mappings of columns.

    Args:
        name: ``-`` for standard input (lines of JSON where the first character is ``{``, else paragraphs); a folder
            that ``datasets`` saved; a folder of files, read in the order of their names; or one file: .txt (paragraphs
            separated by blank lines), .jsonl, .json, .csv, .parquet, all but the last also as .gz or .zst.
        keep: keep the rows of a file for the next call, which is spared reading it again.

    Raises:
        ValueError: nothing to read, or content that is not text; the message names the file and the row.
        ImportError: the optional package for this kind of file is missing.
    """
    if name == STANDARD_INPUT:
        if not _standard_input():
            raise InputError("standard input: no rows")
        return list(_standard_input())
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(f"text file {name!r} does not exist")
    if path.is_dir():
        return _folder_rows(path)
    stat = path.stat()
    key = (path.resolve(), stat.st_mtime_ns, stat.st_size)
    rows = _kept.pop(key, None) or _file_rows(path)
    if keep:
        _kept[key] = rows
    return rows


def check_text(text: Any, where: str) -> str:
    """Return a row's text, or raise ValueError that says what it is instead.

    Args:
        text: the value of a text column.
        where: file and row, for the message.

    Raises:
        ValueError: no string, a character that is half of a surrogate pair, or NUL.
    """
    if not isinstance(text, str):
        raise InputError(f"{where}: text is {type(text).__name__}, expected a string")
    if "\0" in text:
        raise InputError(f"{where}: text holds a NUL character at position {text.index(chr(0))}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = text[error.start].encode("unicode_escape").decode()
        raise InputError(
            f"{where}: text holds half of a surrogate pair, {character}, at position {error.start}"
        ) from None
    return text


@lru_cache(maxsize=1)
def _standard_input() -> tuple[Any, ...]:
    """Read standard input once; it cannot be read again."""
    text = _decoded(sys.stdin.buffer.read(), "standard input")
    if text.lstrip().startswith("{"):
        return tuple(_json_lines(text, "standard input"))
    return tuple(paragraphs(text))


def _folder_rows(folder: Path) -> list[Any]:
    if any((folder / name).is_file() for name in SAVED_BY_DATASETS):
        return _dataset_rows(folder)
    named = (path for path in folder.iterdir() if not path.name.startswith("."))
    files = sorted(path for path in named if path.is_file() and kind_of(path) is not None)
    if not files:
        raise InputError(f"{folder}: no file that ends in {', '.join(KINDS)}, and no data set that datasets saved")
    return [row for file in files for row in read_rows(str(file))]


def _dataset_rows(folder: Path) -> list[Any]:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise ImportError(f"{folder}: reading it needs datasets: pip install 'pruneengine[data]'") from error
    data = load_from_disk(str(folder))
    if hasattr(data, "column_names") and not isinstance(data.column_names, dict):
        return list(data.to_list())
    raise InputError(f"{folder}: a data set of several splits ({', '.join(data)}); name the folder of one of them")


def _file_rows(path: Path) -> list[Any]:
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"{path}: expected a file that ends in {', '.join(KINDS)}, which .gz or .zst may follow")
    if kind == ".parquet":
        return _parquet_rows(path)
    text = _decoded(_content(path), str(path))
    if kind == ".txt":
        return list(paragraphs(text))
    if kind == ".csv":
        return _csv_rows(text, path)
    return _json_rows(text, path) if kind == ".json" else list(_json_lines(text, str(path)))


def _content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed."""
    data, suffix = path.read_bytes(), path.suffix.lower()
    if suffix == ".gz":
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: not a whole gzip file: {error}") from None
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise ImportError(f"{path}: reading .zst needs zstandard: pip install zstandard") from error
        try:
            return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
        except zstandard.ZstdError as error:
            raise InputError(f"{path}: not a whole zstandard file: {error}") from None
    return data


def _decoded(data: bytes, where: str) -> str:
    """Return text without a byte order mark, lines ended by a newline; ValueError where it is not UTF-8."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise InputError(f"{where} is {encoding}: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{where}: line {line} is not UTF-8 (byte {data[error.start]:#04x}): save the file as UTF-8"
        ) from None
    return text.replace("\r\n", "\n")


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text: runs of lines that are not blank."""
    block: list[str] = []
    for line in text.split("\n"):
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)


def _json_rows(text: str, path: Path) -> list[Any]:
    """Return the rows of a list, or one for any other value; a file of JSON lines is read as such."""
    try:
        rows = json.loads(text)
    # Not only JSONDecodeError: a number of thousands of digits is a plain ValueError.
    except (ValueError, RecursionError) as error:
        if "\n" not in text.strip():
            raise InputError(f"{path}: not JSON: {error}") from error
        return list(_json_lines(text, str(path)))
    return rows if isinstance(rows, list) else [rows]


def _json_lines(text: str, where: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: line {number} is not JSON: {_json_reason(error)}") from error


def _json_reason(error: ValueError | RecursionError) -> str:
    """Return the reason and the column; the error counts lines from the row's own start."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _csv_rows(text: str, path: Path) -> list[dict[str, str]]:
    rows = []
    # The standard limit of a field is 128 KiB, which a long document passes; it belongs to the whole process.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        for row in reader:
            if None in row or None in row.values():
                columns = ", ".join(reader.fieldnames or ())
                raise InputError(f"{path}: line {reader.line_num} has not the columns {columns}")
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path}: not CSV near line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _parquet_rows(path: Path) -> list[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading parquet needs pyarrow: pip install 'pruneengine[data]'") from error
    try:
        return parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a parquet file: {str(error).splitlines()[0]}") from None
