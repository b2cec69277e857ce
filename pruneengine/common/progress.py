"""Progress of long work and seconds by stage. Progress is silent until the command line switches it on."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

START_AFTER_S = 2.0
TERMINAL_EVERY_S = 0.2
LOG_EVERY_S = 5.0
BAR_WIDTH = 24

_enabled = False


def set_progress(enabled: bool) -> None:
    """Switch progress on standard error on or off for the whole process; it is off after an import."""
    global _enabled
    _enabled = bool(enabled)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; once the work has lasted over two seconds, report its progress on standard error.

    A terminal gets one line that is redrawn and erased at the end; a log gets a line every few seconds. No thread runs
    and the cursor is never hidden, so a loop left by an exception or Ctrl-C leaves the terminal as it was.

    Args:
        iterable: the work, one item per step.
        description: a few words, e.g. ``"perplexity"``.
        total: number of items; ``len(iterable)`` where None and known.
    """
    if not _enabled:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    terminal = sys.stderr.isatty()
    every = TERMINAL_EVERY_S if terminal else LOG_EVERY_S
    start = time.monotonic()
    due = start + START_AFTER_S
    drawn = False
    try:
        for done, item in enumerate(iterable):
            now = time.monotonic()
            if now >= due and done:
                line = _line(description, done, total, now - start)
                sys.stderr.write(f"\r\x1b[K{line}" if terminal else f"{line}\n")
                sys.stderr.flush()
                due, drawn = now + every, True
            yield item
    finally:
        if drawn and terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _line(description: str, done: int, total: int | None, elapsed: float) -> str:
    if not total:
        return f"{description}  {done} done  {_clock(elapsed)} so far"
    filled = min(BAR_WIDTH, BAR_WIDTH * done // total)
    bar = "#" * filled + "-" * (BAR_WIDTH - filled)
    remaining = elapsed / done * max(0, total - done)
    return f"{description}  [{bar}] {done}/{total}  {_clock(remaining)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class Stopwatch:
    """Seconds by stage, in the order in which the stages began."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time within the context to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
