"""How a command ends: one line for what the user can mend, a log for faults, an orderly stop."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from pruneengine.common.errors import InputError, InputTypeError, NotFiniteError, PruneengineError
from tests.cli.test_prune import run


def ending(monkeypatch, error):
    """Run a verb whose job raises."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("pruneengine.jobs.evaluate.run", fail)
    return run("eval", "somewhere", "--text", "none", "--speed")


@pytest.mark.parametrize(
    "error",
    [
        InputError("ratio must lie in (0, 1), got 2"),
        InputTypeError("dtype must be a torch.dtype, got 3"),
        NotFiniteError("loss is nan"),
        OSError(28, "No space left on device"),
        ImportError("needs optuna: pip install 'pruneengine[search]'"),
    ],
)
def test_what_the_user_can_mend_is_one_line(monkeypatch, error):
    done = ending(monkeypatch, error)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {error}"]


@pytest.mark.parametrize(
    "error",
    [IndexError("list index out of range"), KeyError("x"), ValueError("a\nb"), RecursionError("deep")],
)
def test_what_nobody_expected_is_written_whole_to_a_log(monkeypatch, error):
    done = ending(monkeypatch, error)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {type(error).__name__}")
    log = Path(re.search(r"the whole of it is in (\S+\.log)$", line)[1])
    text = log.read_text()
    log.unlink()
    assert "command: pruneengine eval somewhere" in text
    assert "Traceback (most recent call last)" in text
    assert f"{type(error).__name__}" in text.splitlines()[-1] + text.splitlines()[-2]


def test_an_exit_status_is_no_fault(monkeypatch):
    from pruneengine.bench import runner

    for code in (0, 1):
        monkeypatch.setattr(runner, "run", lambda *_, code=code, **__: SimpleNamespace(exit_code=code))
        done = run("bench", "--ops", "gate_scores")
        assert (done.returncode, done.stderr) == (code, "")


def test_neither_line_nor_log_shows_a_password(monkeypatch):
    def fail(*_, **__):
        raise KeyError("no answer of postgresql://me:sec/r@t@host/db")

    monkeypatch.setattr("pruneengine.jobs.evaluate.run", fail)
    done = run("eval", "m", "--speed", "--text", "none", "--out", "postgresql://me:sec/r@t@host/db")
    log = Path(re.search(r"the whole of it is in (\S+\.log)$", done.stderr.strip())[1])
    text = log.read_text()
    log.unlink()
    for shown in (done.stderr, text):
        assert "sec" not in shown
        assert "me:***@host/db" in shown


def test_a_fault_without_room_for_its_log_is_told_whole(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    done = ending(monkeypatch, IndexError("list index out of range"))
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("and no log of it can be written: No space left on device")


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_too_little_memory_is_no_fault(monkeypatch, error):
    done = ending(monkeypatch, error)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: out of memory:")
    assert line.endswith("(a smaller --batch-size, --seqlen or --dtype takes less)")


@pytest.mark.parametrize("status", [0, 1])
def test_a_status_that_the_verb_chose_is_no_fault(monkeypatch, status):
    done = ending(monkeypatch, typer.Exit(status))
    assert (done.returncode, done.stderr) == (status, "")


def test_our_errors_are_also_pythons():
    for kind, python in ((InputError, ValueError), (InputTypeError, TypeError), (NotFiniteError, FloatingPointError)):
        assert issubclass(kind, PruneengineError)
        assert issubclass(kind, python)


@pytest.fixture
def working(tmp_path):
    """A command at work in a process of its own, which tidies up quickly, or slowly."""
    processes = []

    def start(tidies):
        code = (
            "import sys, time\nfrom pruneengine import cli\nimport pruneengine.jobs.evaluate as job\n"
            "def run(*_, **__):\n    try:\n        print('working', flush=True)\n        time.sleep(60)\n    finally:\n"
            f"        print('tidied', flush=True)\n        time.sleep({60 if tidies == 'slowly' else 0})\n"
            "job.run = run\nsys.argv = ['pruneengine', 'eval', 'm', '--text', 'none', '--speed']\ncli.main()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        processes.append(process)
        assert process.stdout.readline() == "working\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_tidies_up_and_says_how_to_go_on(working, number):
    process = working("quickly")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out == "tidied\n"
    assert err.startswith(f"stopped by {number.name}: half-written files are removed; the same command goes on")
    assert "Traceback" not in err


def test_a_second_signal_ends_the_process_at_once_and_without_a_traceback(working):
    process = working("slowly")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "tidied\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 20
    assert process.returncode == 128 + signal.SIGINT
    assert err == ""


def test_the_signals_of_the_process_are_given_back(monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ending(monkeypatch, InputError("wrong"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("error", "status"), [(InputError("wrong"), 2), (IndexError("out of range"), 1)])
def test_what_an_error_says_of_finished_work_is_told(monkeypatch, error, status):
    error.add_note("The checkpoint is saved in here.")
    done = ending(monkeypatch, error)
    assert (done.returncode, "The checkpoint is saved in here." in done.stderr) == (status, True)
    for log in re.findall(r"\S+\.log$", done.stderr.strip()):
        Path(log).unlink()
