"""Versions of Python and of the packages that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = ("pruneengine", "torch", "transformers", "peft", "optuna", "lm_eval", "triton")


def versions() -> dict[str, str]:
    """Return the version of Python and of every package in :data:`PACKAGES`, or "not installed"."""
    by_name = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            by_name[name] = "not installed"
    return by_name
