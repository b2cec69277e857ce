"""Memory that activations can use again, rather than fresh pages for every layer."""

from __future__ import annotations

import torch

# glibc maps blocks beyond a threshold anew each time and gives them back when they are freed, so every layer's
# activations begin with page faults: a tenth of a forward pass. Freeing a mapped block teaches it a threshold of that
# size, up to 32 MiB, and to hold on to twice as much (mallopt(3), M_MMAP_THRESHOLD). Larger ones teach it nothing.
_LESSON = 32 * 2**20 - 2**16


def reuse_freed_memory() -> None:
    """Let the C library keep up to 64 MiB of freed memory for the next activations; elsewhere than on glibc, no-op.

    Nothing is written to the block that it takes for that, so it costs no memory.
    """
    torch.empty(_LESSON, dtype=torch.uint8)
