"""Documents by name: the reference manual that Python carries, a local file, or a data set of the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROLES = ("calibration", "evaluation")
BUILTIN = ("builtin", "builtin-eval")
TEXT_COLUMNS = ("text", "page", "sentence", "content")
FILE_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
SHARED_LINE = 60


@dataclass(frozen=True)
class HubText:
    """The text of a data set of the hub: keyword arguments of ``datasets.load_dataset`` for each role.

    ``joined`` data sets hold lines of running text, not documents: their rows become one document, joined by blank
    lines. Converted parquet files stand in where the data set itself is a script, which ``datasets`` 4 refuses.
    """

    path: str
    calibration: Mapping[str, str]
    evaluation: Mapping[str, str] | None
    joined: bool = False


_CONVERTED = {"revision": "refs/convert/parquet", "split": "train"}
HUB = {
    "wikitext2": HubText(
        "Salesforce/wikitext",
        {"name": "wikitext-2-raw-v1", "split": "train"},
        {"name": "wikitext-2-raw-v1", "split": "test"},
        joined=True,
    ),
    "c4": HubText(
        "allenai/c4",
        {"data_files": "en/c4-train.00000-of-01024.json.gz", "split": "train"},
        {"data_files": "en/c4-validation.00000-of-00008.json.gz", "split": "train[:1100]"},
    ),
    "ptb": HubText(
        "ptb-text-only/ptb_text_only",
        {"data_files": "penn_treebank/train/*.parquet", **_CONVERTED},
        {"data_files": "penn_treebank/validation/*.parquet", **_CONVERTED},
        joined=True,
    ),
    "bookcorpus": HubText(
        "bookcorpus/bookcorpus", {"data_files": "plain_text/*train/0000.parquet", **_CONVERTED}, None
    ),
    "alpaca": HubText("yahma/alpaca-cleaned", {"split": "train"}, None),
}


def documents(name: str, role: str = "calibration") -> Sequence[str]:
    """Return the documents of one source, in a fixed order.

    Args:
        name: ``builtin`` or ``builtin-eval`` (two halves of the reference manual that Python carries, without a shared
            topic; the text follows the Python version), a path that ends in .txt, .jsonl, .json or .parquet, or a name
            of :data:`HUB`. Paragraphs of a .txt file, separated by blank lines, are documents.
        role: ``calibration`` or ``evaluation``, for the split of a hub data set.

    Raises:
        ValueError: no such source, a file that cannot be read as text rows, or a data set without that split.
        OSError: the hub cannot be reached.
        ImportError: the optional dependency of this source is missing.
    """
    if role not in ROLES:
        raise ValueError(f"role={role!r}: expected one of {', '.join(ROLES)}")
    check_source(name)
    if name in BUILTIN:
        return builtin_halves()[name == "builtin-eval"]
    if name in HUB:
        return _hub_documents(name, role)
    path = Path(name)
    if path.suffix == ".txt":
        return _paragraphs(path.read_text(encoding="utf-8"))
    return rows_to_text(_file_rows(path), name)


def check_source(name: str) -> None:
    """Raise ValueError if the name is unknown or its file does not exist; nothing is read."""
    if name in BUILTIN or name in HUB:
        return
    path = Path(name)
    if path.suffix not in FILE_SUFFIXES:
        known = ", ".join((*BUILTIN, "self", *HUB))
        raise ValueError(f"unknown text source {name!r}: expected {known}, or a {'/'.join(FILE_SUFFIXES)} file")
    if not path.is_file():
        raise ValueError(f"text file {name!r} does not exist")


def alpaca_prompt(row: Mapping[str, str]) -> tuple[str, str]:
    """Return prompt and answer, in Stanford Alpaca's format, of a row with instruction, output and optionally input."""
    paired = f"### Input:\n{row['input']}\n\n" if row.get("input") else ""
    context = ", paired with an input that provides further context" if paired else ""
    prompt = (
        f"Below is an instruction that describes a task{context}. Write a response that appropriately completes the "
        f"request.\n\n### Instruction:\n{row['instruction']}\n\n{paired}### Response:\n"
    )
    return prompt, row["output"]


def instructions(name: str) -> list[tuple[str, str]] | None:
    """Return prompt and answer of every row of an instruction data set; None where the source holds running text.

    Args:
        name: ``alpaca``, or a .json, .jsonl or .parquet file with columns instruction, output and optionally input,
            whatever other columns it has.

    Raises:
        ValueError: no rows; columns that are neither instructions nor text (the message names the columns and the
            expected ones); a row without its instruction or output.
        OSError, ImportError: as :func:`documents`.
    """
    check_source(name)
    if name != "alpaca" and (name in BUILTIN or name in HUB or Path(name).suffix == ".txt"):
        return None
    rows = _hub_rows(name, "calibration").to_list() if name in HUB else _file_rows(Path(name))
    if not rows:
        raise ValueError(f"{name}: no rows")
    columns = set(rows[0]) if isinstance(rows[0], Mapping) else set()
    # Instructions come before text: Stanford Alpaca's own rows hold their rendered text beside its columns.
    if not {"instruction", "output"} <= columns:
        if isinstance(rows[0], str) or columns & set(TEXT_COLUMNS):
            return None
        raise ValueError(
            f"{name}: columns {', '.join(sorted(columns)) or 'none'}; expected instruction, output and optionally "
            f"input, or text in one of {', '.join(TEXT_COLUMNS)}"
        )
    for number, row in enumerate(rows, 1):
        values = [row.get(column) for column in ("instruction", "output")] if isinstance(row, Mapping) else [None]
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{name}: row {number} has no instruction and output like row 1")
    return [alpaca_prompt(row) for row in rows]


def rows_to_text(rows: Sequence[Any], name: str) -> Sequence[str]:
    """Return one document per row: the row itself if it is a string, a text column, or the rendered alpaca columns.

    Where a row holds both, the text column counts: it is running text as its author wrote it. Only
    :func:`instructions`, which tells prompts from answers, prefers the columns.

    Raises:
        ValueError: no rows, no known column, or a row whose text is missing or not a string; the message names the row.
    """
    if not len(rows):
        raise ValueError(f"{name}: no rows")
    first = rows[0]
    if isinstance(first, str):
        texts = list(rows)
    elif not isinstance(first, Mapping):
        raise ValueError(f"{name}: row 1 is {type(first).__name__}, expected an object or a string")
    elif column := next((column for column in TEXT_COLUMNS if column in first), None):
        texts = [row.get(column) if isinstance(row, Mapping) else None for row in rows]
    elif {"instruction", "output"} <= set(first):
        complete = [isinstance(row, Mapping) and {"instruction", "output"} <= set(row) for row in rows]
        texts = ["".join(alpaca_prompt(row)) if ok else None for row, ok in zip(rows, complete, strict=True)]
    else:
        raise ValueError(
            f"{name}: columns {sorted(first)}, expected one of {', '.join(TEXT_COLUMNS)} or instruction and output"
        )
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ValueError(f"{name}: row {number} has no text like row 1")
    return texts


@cache
def builtin_halves() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return calibration and evaluation half of Python's reference manual, split by whole topics.

    The manual (``pydoc_data.topics``) repeats itself. So a topic that shares a long line with a longer topic is left
    out, and no passage stands in both halves, or twice in one.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError("this Python has no pydoc_data: name a text file instead of builtin") from error
    seen: set[str] = set()
    halves: tuple[dict[str, str], dict[str, str]] = ({}, {})
    sizes = [0, 0]
    for title in sorted(topics, key=lambda title: (-len(topics[title]), title)):
        lines = {line.strip() for line in topics[title].splitlines() if len(line.strip()) >= SHARED_LINE}
        if lines & seen:
            continue
        seen |= lines
        half = sizes.index(min(sizes))
        halves[half][title] = _unwrap(topics[title])
        sizes[half] += len(topics[title])
    calibration, evaluation = (tuple(half[title] for title in sorted(half)) for half in halves)
    return calibration, evaluation


def _unwrap(text: str) -> str:
    """Return markup text without heading underlines, with each plain paragraph unwrapped to one line."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = [line.rstrip() for line in paragraph.splitlines() if line.strip("*=-~^ ")]
        indented = any(line.startswith(" ") for line in lines)
        paragraphs.append(("\n" if indented else " ").join(lines))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _paragraphs(text: str) -> list[str]:
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def _file_rows(path: Path) -> list[Any]:
    return _read_parquet(path) if path.suffix == ".parquet" else _read_json(path)


def _read_json(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            if "\n" not in text.strip():
                raise ValueError(f"{path}: not JSON: {error}") from error
        else:
            return rows if isinstance(rows, list) else [rows]
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
    return rows


def _read_parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading parquet needs pyarrow: pip install 'pruneengine[data]'") from error
    return parquet.read_table(path).to_pylist()


def _hub_documents(name: str, role: str) -> Sequence[str]:
    rows = _hub_rows(name, role)
    column = next((column for column in TEXT_COLUMNS if column in rows.column_names), None)
    texts = rows[column] if column else rows_to_text(rows.to_list(), name)
    return ["\n\n".join(texts)] if HUB[name].joined else texts


def _hub_rows(name: str, role: str) -> Any:
    """Load the rows of a hub data set as a ``datasets.Dataset``."""
    source = HUB[name]
    arguments = source.calibration if role == "calibration" else source.evaluation
    if arguments is None:
        raise ValueError(f"{name} has no evaluation split: evaluate on wikitext2, c4, ptb, builtin-eval or a file")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"text source {name!r} needs datasets: pip install 'pruneengine[data]'") from error
    try:
        return load_dataset(source.path, **arguments)
    except Exception as error:  # datasets raises a dozen types for "no network"
        tried = ", ".join(f"{key} {value}" for key, value in arguments.items())
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{name}: {source.path} ({tried}) could not be loaded: {type(error).__name__}: {reason}; "
            "offline, name builtin, self or a text file"
        ) from error
