"""Rows of a data set as documents: running text, instructions, or chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.data.text_files import check_text

TEXT_COLUMNS = ("text", "page", "sentence", "content")
INSTRUCTION_COLUMNS = ("instruction", "output")
CHAT_COLUMN = "messages"


def alpaca_prompt(row: Mapping[str, str]) -> tuple[str, str]:
    """Return prompt and answer, in Stanford Alpaca's format, of a row with instruction, output and optionally input."""
    paired = f"### Input:\n{row['input']}\n\n" if row.get("input") else ""
    context = ", paired with an input that provides further context" if paired else ""
    prompt = (
        f"Below is an instruction that describes a task{context}. Write a response that appropriately completes the "
        f"request.\n\n### Instruction:\n{row['instruction']}\n\n{paired}### Response:\n"
    )
    return prompt, row["output"]


def rows_to_text(rows: Sequence[Any], name: str, tokenizer: Any = None) -> list[str]:
    """Return one document per row: the row itself if it is a string, a text column, or the rendered other columns.

    Where a row holds both, the text column counts: it is running text as its author wrote it. Only
    :func:`instruction_pairs`, which tells prompts from answers, prefers the columns.

    Args:
        rows: strings, or mappings with a text column, the columns instruction, output and optionally input (rendered as
            :func:`alpaca_prompt`), or ``messages`` (rendered by the tokenizer's chat template).
        name: source of the rows, for messages.
        tokenizer: a transformers tokenizer; None checks the rows of a chat without rendering them.

    Raises:
        ValueError: no rows, no known column, a row whose text is missing or no text, or a chat that the tokenizer has
            no template for; the message names the row.
    """
    if not len(rows):
        raise InputError(f"{name}: no rows")
    first = rows[0]
    if not isinstance(first, (str, Mapping)):
        raise InputError(f"{name}: row 1 is {type(first).__name__}, expected an object or a string")
    column = None if isinstance(first, str) else _column(first)
    if column is None and isinstance(first, Mapping):
        raise InputError(
            f"{name}: columns {sorted(first)}, expected one of {', '.join(TEXT_COLUMNS)}, {CHAT_COLUMN}, or "
            "instruction and output"
        )
    return [_text_of(row, column, f"{name}: row {number}", tokenizer) for number, row in enumerate(rows, 1)]


def instruction_pairs(rows: Sequence[Any], name: str) -> list[tuple[str, str]] | None:
    """Return prompt and answer of every row of an instruction data set; None where the rows hold running text.

    Raises:
        ValueError: no rows; columns that are neither instructions nor text (the message names the columns and the
            expected ones); a row without its instruction or output.
    """
    if not len(rows):
        raise InputError(f"{name}: no rows")
    columns = set(rows[0]) if isinstance(rows[0], Mapping) else set()
    # Instructions come before text: Stanford Alpaca's own rows hold their rendered text beside its columns.
    if not set(INSTRUCTION_COLUMNS) <= columns:
        if isinstance(rows[0], str) or columns & {*TEXT_COLUMNS, CHAT_COLUMN}:
            return None
        raise InputError(
            f"{name}: columns {', '.join(sorted(columns)) or 'none'}; expected instruction, output and optionally "
            f"input, or text in one of {', '.join(TEXT_COLUMNS)}"
        )
    for number, row in enumerate(rows, 1):
        values = [row.get(column) for column in INSTRUCTION_COLUMNS] if isinstance(row, Mapping) else [None]
        if not all(isinstance(value, str) for value in values):
            raise InputError(f"{name}: row {number} has no instruction and output like row 1")
        check_text("".join(alpaca_prompt(row)), f"{name}: row {number}")
    return [alpaca_prompt(row) for row in rows]


def _column(row: Mapping[str, Any]) -> str | None:
    """Return the column that the text of rows like this one is read from."""
    text = next((column for column in TEXT_COLUMNS if column in row), None)
    if text is not None and (row[text] is not None or not _has_instruction(row)):
        return text
    if CHAT_COLUMN in row:
        return CHAT_COLUMN
    return INSTRUCTION_COLUMNS[0] if set(INSTRUCTION_COLUMNS) <= set(row) else None


def _has_instruction(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row.get(column), str) for column in INSTRUCTION_COLUMNS)


def _text_of(row: Any, column: str | None, where: str, tokenizer: Any) -> str:
    """Return the text of one row, read as the first row is."""
    if column is None:
        text = row
    elif not isinstance(row, Mapping):
        text = None
    elif column == CHAT_COLUMN:
        text = _chat_text(row.get(CHAT_COLUMN), where, tokenizer)
    elif column == INSTRUCTION_COLUMNS[0]:
        text = "".join(alpaca_prompt(row)) if _has_instruction(row) else None
    else:
        text = row.get(column)
    if text is None:
        raise InputError(f"{where} has no text like row 1")
    return check_text(text, where)


def _chat_text(messages: Any, where: str, tokenizer: Any) -> str | None:
    """Return a chat as the tokenizer's template writes it, or, without a tokenizer, what its messages say."""
    if messages is None:
        return None
    plain = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not (plain and messages and all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in messages)):
        raise InputError(
            f"{where}: messages must be a list of objects with role and content, got {str(messages)[:60]!r}"
        )
    if tokenizer is None:
        return "\n".join(str(message["content"]) for message in messages)
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{where} is a chat, and the tokenizer has no chat template: give text, or another tokenizer")
    return tokenizer.apply_chat_template(list(messages), tokenize=False)
