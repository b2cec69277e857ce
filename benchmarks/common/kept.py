"""Measurements of a study on disk: one JSON file per cell, named by a digest of everything that made the cell."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pruneengine.common.files import write_atomically


def digest(made_by: Any) -> str:
    """Sixteen hexadecimal digits of plain values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


def read_kept(path: Path) -> dict[str, Any] | None:
    """What an earlier run found, if it did."""
    return json.loads(path.read_text()) if path.exists() else None


def keep(path: Path, found: dict[str, Any]) -> None:
    """Write it as :func:`read_kept` reads it."""
    write_atomically(path, json.dumps(found, indent=1))
