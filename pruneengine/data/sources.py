"""Documents by name: the reference manual that Python carries, a local file, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.data.rows import TEXT_COLUMNS, instruction_pairs, rows_to_text
from pruneengine.data.text_files import KINDS, is_text_source, read_rows

ROLES = ("calibration", "evaluation")
BUILTIN = ("builtin", "builtin-eval")
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


def documents(name: str, role: str = "calibration", tokenizer: Any = None) -> Sequence[str]:
    """Return the documents of one source, in a fixed order.

    Args:
        name: ``builtin`` or ``builtin-eval`` (two halves of the reference manual that Python carries, without a shared
            topic; the text follows the Python version), a name of :data:`HUB`, or a file, a folder or ``-``, standard
            input (:func:`pruneengine.data.text_files.read_rows`).
        role: ``calibration`` or ``evaluation``, for the split of a hub data set.
        tokenizer: renders chats.

    Raises:
        ValueError: no such source, a file that cannot be read as text rows, or a data set without that split.
        OSError: the hub cannot be reached.
        ImportError: the optional dependency of this source is missing.
    """
    if role not in ROLES:
        raise InputError(f"role={role!r}: expected one of {', '.join(ROLES)}")
    _check_name(name)
    if name in BUILTIN:
        return builtin_halves()[name == "builtin-eval"]
    if name in HUB:
        return _hub_documents(name, role)
    return rows_to_text(read_rows(name), name, tokenizer)


def check_source(name: str, *, instructions: bool = False, role: str = "calibration") -> None:
    """Raise ValueError if there is no such source, or its file does not hold text; call it before a model is loaded.

    Data sets of the hub are not read. A file's rows are kept for the next time that they are read.

    Args:
        name: as of :func:`documents`.
        instructions: the rows may be read as prompts and answers (:func:`instructions`).
        role: ``calibration`` or ``evaluation``, for the split of a hub data set.
    """
    _check_name(name)
    if name in HUB:
        _split(name, role)
    if name in BUILTIN or name in HUB:
        return
    rows = read_rows(name, keep=True)
    if not (instructions and instruction_pairs(rows, name) is not None):
        rows_to_text(rows, name)


def _check_name(name: str) -> None:
    if name not in BUILTIN and name not in HUB and not is_text_source(name):
        known = ", ".join((*BUILTIN, "self", *HUB))
        raise InputError(
            f"unknown text source {name!r}: expected {known}, a folder, a file that ends in {', '.join(KINDS)} (which "
            ".gz or .zst may follow), or - for standard input"
        )


def instructions(name: str) -> list[tuple[str, str]] | None:
    """Return prompt and answer of every row of an instruction data set; None where the source holds running text.

    Args:
        name: ``alpaca``, or a file or folder (:func:`pruneengine.data.text_files.read_rows`) with columns instruction,
            output and optionally input, whatever other columns it has.

    Raises:
        ValueError: as :func:`pruneengine.data.rows.instruction_pairs`.
        OSError, ImportError: as :func:`documents`.
    """
    _check_name(name)
    if name != "alpaca" and (name in BUILTIN or name in HUB):
        return None
    rows = _hub_rows(name, "calibration").to_list() if name in HUB else read_rows(name)
    return instruction_pairs(rows, name)


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


def _hub_documents(name: str, role: str) -> Sequence[str]:
    rows = _hub_rows(name, role)
    column = next((column for column in TEXT_COLUMNS if column in rows.column_names), None)
    texts = rows[column] if column else rows_to_text(rows.to_list(), name)
    return ["\n\n".join(texts)] if HUB[name].joined else texts


def _split(name: str, role: str) -> Mapping[str, str]:
    """Return the arguments of ``load_dataset`` for a role; ValueError where the data set has no such split."""
    arguments = HUB[name].calibration if role == "calibration" else HUB[name].evaluation
    if arguments is None:
        raise InputError(f"{name} has no evaluation split: evaluate on wikitext2, c4, ptb, builtin-eval or a file")
    return arguments


def _hub_rows(name: str, role: str) -> Any:
    """Load the rows of a hub data set as a ``datasets.Dataset``."""
    source, arguments = HUB[name], _split(name, role)
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
