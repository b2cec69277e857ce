"""Imports of optional packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Turn a missing package of an optional extra into one line that names what to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}; it comes with: pip install 'pruneengine[{extra}]'") from None
