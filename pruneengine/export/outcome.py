"""Result of an export: the call that opens it, the checks it passed, and the checks that were not made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class Written:
    """Account of one written format.

    Attributes:
        opens_with: call or command that opens it.
        verified: one sentence per check, with its result.
        remarks: further facts for the reader, such as checks that were not made and the cost of the format.
    """

    opens_with: str
    verified: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """Finished export.

    Attributes:
        path: its folder, absolute.
        format: "gguf", "deci" or "pad".
        bytes: size of all its files.
        written: account of the format.
    """

    path: Path
    format: str
    bytes: int
    written: Written


def describe(folder: Path, format: str, source: str, title: str, written: Written) -> None:
    """Write ``export.json`` into ``folder`` and append a section to its ``README.md``."""
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
