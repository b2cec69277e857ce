"""What an export says of itself: how to open it, what it was verified with, what was not tried."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class Written:
    """One format's account of what it wrote.

    Attributes:
        opens_with: the call or command that opens it.
        verified: what was done to check it, and what that gave, a sentence each.
        remarks: what the reader must know: what was not tried, what it costs.
    """

    opens_with: str
    verified: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: its folder, absolute.
        format: "gguf", "deci" or "pad".
        bytes: size of all its files.
        written: the format's own account.
    """

    path: Path
    format: str
    bytes: int
    written: Written


def describe(folder: Path, format: str, source: str, title: str, written: Written) -> None:
    """Put ``export.json`` into ``folder`` and a section into its ``README.md``."""
    values: dict[str, Any] = {"format": format, "source": source} | asdict(written)
    (folder / EXPORT_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    head = card.read_text(encoding="utf-8").rstrip() if card.exists() else f"# {title}"
    parts = [
        head,
        f"## Export\n\nWritten by pruneengine as {format}. Open it with:\n\n```\n{written.opens_with}\n```",
        "Verified:\n\n" + "\n".join(f"- {line}" for line in written.verified or ("nothing: asked not to",)),
    ]
    if written.remarks:
        parts.append("To know:\n\n" + "\n".join(f"- {line}" for line in written.remarks))
    card.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
