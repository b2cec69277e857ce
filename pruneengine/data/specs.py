"""Text specs: names of sources with sample counts, such as ``"c4:64,alpaca.jsonl:64"``."""

from __future__ import annotations

import re
from pathlib import Path

from pruneengine.common.errors import InputError
from pruneengine.data.sources import check_source

MIX_COUNTS = "expected a count for every source of a mix, as in 'a:64,b:64'"


def parse_spec(spec: str, nsamples: int | None = None) -> list[tuple[str, int | None]]:
    """Return the sources and sample counts of a spec such as ``"a:64,b:64"``.

    Args:
        spec: one or several sources; the count of a single source may be left to ``nsamples``.
        nsamples: total number of samples; None for the counts in the spec.

    Raises:
        ValueError: an empty or repeated source, a missing count in a mix, a count below 1, or counts that do not add
            up to ``nsamples``.
    """
    if nsamples is not None and nsamples < 1:
        raise InputError(f"nsamples={nsamples}: expected at least 1")
    parts: list[tuple[str, int | None]] = []
    for name, count in _split_spec(spec):
        if not name or (count is not None and not (count.isdecimal() and int(count))):
            raise InputError(f"spec {spec!r}: expected 'source' or 'source:count,source:count' with counts from 1")
        parts.append((name, None if count is None else int(count)))
    names = [name for name, _ in parts]
    if len(set(names)) < len(names):
        raise InputError(f"spec {spec!r} names a source twice")
    counts = [count for _, count in parts if count is not None]
    if nsamples is None and not counts:
        return parts
    if len(parts) == 1 and not counts:
        return [(names[0], nsamples)]
    if len(counts) < len(parts):
        raise InputError(f"spec {spec!r}: {MIX_COUNTS}")
    if nsamples is not None and sum(counts) != nsamples:
        raise InputError(f"spec {spec!r} counts {sum(counts)} samples, nsamples={nsamples}")
    return parts


def _split_spec(spec: str) -> list[tuple[str, str | None]]:
    """Return sources and counts as they are written.

    A name that holds a comma or a colon stands in double quotes, or is a path that exists.
    """
    parts = []
    written = [spec] if _exists(spec) else re.findall(r'(?:"[^"]*"|[^",])+', spec)
    if ",".join(written) != spec:
        raise InputError(f"spec {spec!r}: an empty source, or a quote without its end")
    for part in written or [""]:
        text = part.strip()
        if quoted := re.fullmatch(r'"([^"]*)"(?::(.*))?', text):
            parts.append((quoted[1], quoted[2]))
            continue
        name, colon, count = text.rpartition(":")
        parts.append((name, count) if colon and not _exists(text) else (text, None))
    return parts


def _exists(name: str) -> bool:
    try:
        return bool(name.strip()) and Path(name).expanduser().exists()
    except (OSError, ValueError):
        return False


def refuse_own_samples(role: str) -> None:
    """Raise ValueError if the model's own samples are to be evaluation text."""
    if role == "evaluation":
        raise InputError("evaluation text 'self': a model's own samples measure nothing; name a file or data set")


def check_spec(
    spec: str, count: int | None, default: int, *, counted: bool = False, role: str = "calibration"
) -> int | None:
    """Check a spec before a model is loaded, and return its number of samples.

    Args:
        spec: name of the text.
        count: the number asked for, if any.
        default: the number where neither ``count`` nor the spec gives one.
        role: ``calibration`` or ``evaluation``, which ``self`` cannot be.
        counted: every source of a mix needs a count; only evaluation text may be read whole.

    Returns:
        The value for ``nsamples`` or ``limit``: None where the spec has counts of its own.

    Raises:
        ValueError: as :func:`parse_spec`, a mix without counts, or a source that does not exist or has no text for
            the role.
    """
    parts = parse_spec(spec, count)
    if counted and len(parts) > 1 and any(number is None for _, number in parts):
        raise InputError(f"spec {spec!r}: {MIX_COUNTS}")
    for name, _ in parts:
        if name == "self":
            refuse_own_samples(role)
        else:
            check_source(name, role=role)
    return default if len(parts) == 1 and parts[0][1] is None else count
