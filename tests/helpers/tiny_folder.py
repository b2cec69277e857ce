"""Model folder and text files for runs that start from files: the command line's, and the studies'."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_tasks import byte_tokenizer

TEXT = "\n\n".join(
    f"Sentence {i} of the small text tells that {i * 7 % 13} and {i * 5 % 11} differ." for i in range(120)
)


def write_folder(root: Path) -> Path:
    """Write a tiny model with a byte-level tokenizer into ``model``, and ``text.txt`` beside it."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(root / "model")
    tiny_model("llama-gqa-tied", vocab_size=len(tokenizer)).save_pretrained(root / "model")
    (root / "text.txt").write_text(TEXT)
    return root


def write_texts(root: Path) -> Path:
    """Write ``search.txt`` and ``report.txt``, which share no run of 32 tokens."""
    for name, words in (("search", "red green blue"), ("report", "one two three")):
        lines = (f"{words} {i} {i * i % 97} {i * 31 % 53} {words[::-1]}" for i in range(200))
        (root / f"{name}.txt").write_text("\n\n".join(lines))
    return root
