"""Progress is silent in the library, honest about time, and leaves a terminal as it was."""

import io
import sys
import time

import pytest

from pruneengine.common import progress


@pytest.fixture
def progress_on(monkeypatch):
    monkeypatch.setattr(progress, "START_AFTER_S", 0.02)
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "TERMINAL_EVERY_S", 0.0)
    progress.set_progress(True)
    yield
    progress.set_progress(False)


def test_progress_is_off_in_the_library(capsys, monkeypatch):
    monkeypatch.setattr(progress, "START_AFTER_S", 0.0)
    assert list(progress.track(range(3), "work")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_progress_tells_how_far_and_how_long(capsys, progress_on):
    items = []
    for item in progress.track(iter(range(4)), "work", total=4):
        time.sleep(0.03)
        items.append(item)
    lines = capsys.readouterr().err.splitlines()
    assert items == [0, 1, 2, 3]
    assert "2/4" in lines[1]
    assert all(line.startswith("work") and "left" in line for line in lines)
    assert len(lines) == 3


def test_short_work_stays_silent(capsys, monkeypatch):
    monkeypatch.setattr(progress, "START_AFTER_S", 10.0)
    progress.set_progress(True)
    try:
        assert sum(progress.track([1, 2], "work")) == 3
    finally:
        progress.set_progress(False)
    assert capsys.readouterr().err == ""


def test_a_terminal_line_is_erased_when_the_work_is_stopped(monkeypatch, progress_on):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    steps = progress.track(range(9), "work")
    next(steps)
    time.sleep(0.03)
    next(steps)
    assert "1/9" in sys.stderr.getvalue()
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert sys.stderr.getvalue().endswith("\r\x1b[K")
