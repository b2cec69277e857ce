"""The README's table of families: written by ``make matrix`` from the outcome of the tests themselves.

Every test that carries the mark ``shows`` is run in a process of its own; its report says which family and which
capability each test was about. Nothing else goes into a cell.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
START, END = "<!-- written by make matrix -->", "<!-- end of what make matrix writes -->"
CAPABILITIES = ("structured", "sparse", "search", "recovery", "reload", "export")
# Of JUnit's two formats the one with properties of a test.
REPORT = ("-o", "junit_family=xunit1")
# What pytest ends with where all tests passed, or some failed: the only ways to end that tell an outcome of each.
RAN = (0, 1)


@dataclass(frozen=True)
class Outcome:
    """Outcome of one test of a capability of a family.

    Attributes:
        family, capability: the family that was tested, and the column of the table.
        test: name of the test, with its parameters.
        result: "passed", "failed" or "skipped".
        shown: what the test itself recorded as shown (``record_property("shown", ...)``), such as a format.
    """

    family: str
    capability: str
    test: str
    result: str
    shown: tuple[str, ...] = ()


def run_tests() -> list[Outcome]:
    """Run every test that shows something; raise RuntimeError if pytest could not."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "shows", *REPORT, f"--junitxml={report}", "tests"]
        status = subprocess.run(command, cwd=ROOT).returncode
        if status not in RAN:
            raise RuntimeError(f"pytest ended with status {status}; the table is left as it was")
        return read_report(report.read_text(encoding="utf-8"))


def read_report(xml: str) -> list[Outcome]:
    """Read outcomes from a report of pytest in JUnit's format, without the tests that show nothing."""
    found = []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        said: dict[str, list[str]] = {}
        for entry in case.iter("property"):
            said.setdefault(entry.get("name", ""), []).append(entry.get("value", ""))
        bad = {child.tag for child in case} & {"failure", "error"}
        result = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        for capability in said.get("shows", []):
            test = case.get("name", "")
            found.append(Outcome(said["family"][0], capability, test, result, tuple(said.get("shown", ()))))
    return found


def cell(outcomes: Sequence[Outcome]) -> str:
    """Return what was shown, or "yes", if all of at least one test passed; else name those that did not."""
    if not outcomes:
        return "no test"
    for result in ("failed", "skipped"):
        if tests := sorted({each.test.partition("[")[0] for each in outcomes if each.result == result}):
            return f"{result}: {', '.join(tests)}"
    return ", ".join(sorted({what for each in outcomes for what in each.shown})) or "yes"


def table(outcomes: Iterable[Outcome], families: Iterable[str]) -> str:
    """Return the table in Markdown: one row per family, one column per capability."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for each in outcomes:
        found.setdefault((each.family, each.capability), []).append(each)
    lines = [_row("family", CAPABILITIES), "|---" * (1 + len(CAPABILITIES)) + "|"]
    lines += [_row(family, [cell(found.get((family, what), ())) for what in CAPABILITIES]) for family in families]
    return "\n".join(lines)


def _row(head: str, cells: Iterable[str]) -> str:
    return f"| {head} | {' | '.join(cells)} |"


def committed(text: str) -> str:
    """Return the text between the two marks of a document; raise ValueError unless each stands there once, in order."""
    _head, *rest = text.split(START)
    if len(rest) != 1 or rest[0].count(END) != 1:
        raise ValueError(f"expected {START} and, behind it, {END}, once each")
    return rest[0].partition(END)[0].strip()


def replaced(text: str, block: str) -> str:
    """Return the document with another text between the marks."""
    committed(text)
    return f"{text.partition(START)[0]}{START}\n{block}\n{END}{text.partition(END)[2]}"


def main() -> int:
    """Rewrite the README's block; the exit status is 1 if any test failed."""
    from tests.helpers.families import FAMILIES

    committed(README.read_text(encoding="utf-8"))
    outcomes = run_tests()
    count = {result: sum(each.result == result for each in outcomes) for result in ("passed", "failed", "skipped")}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    summary = ", ".join(f"{number} {result}" for result, number in count.items() if number)
    when = datetime.now(UTC).date()
    note = f"{summary}; Python {sys.version_info.major}.{sys.version_info.minor}, {versions}, {when}."
    block = f"{table(outcomes, FAMILIES)}\n\nTests behind these cells: {note}"
    README.write_text(replaced(README.read_text(encoding="utf-8"), block), encoding="utf-8")
    print(block)
    return int(count["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
