"""Table of families in the README: every row and column, and cells as the outcomes of the tests."""

import os
import subprocess
import sys

import pytest

from tests.helpers.families import FAMILIES
from tests.helpers.family_matrix import (
    CAPABILITIES,
    END,
    README,
    REPORT,
    ROOT,
    START,
    Outcome,
    cell,
    committed,
    read_report,
    replaced,
    table,
)


def outcome(result, test="test_a[x]", shown=(), family="llama", capability="sparse"):
    return Outcome(family, capability, test, result, shown)


def cells(line):
    return [text.strip() for text in line.strip("|").split("|")]


def test_the_committed_table_has_every_family_and_capability():
    head, _rule, *rows = [line for line in committed(README.read_text()).splitlines() if line.startswith("|")]
    assert cells(head) == ["family", *CAPABILITIES]
    assert [cells(row)[0] for row in rows] == list(FAMILIES)
    assert all(cells(row).count("") == 0 and len(cells(row)) == 1 + len(CAPABILITIES) for row in rows)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], "no test"),
        ([outcome("passed")], "yes"),
        ([outcome("passed"), outcome("failed", "test_b[y]")], "failed: test_b"),
        ([outcome("failed"), outcome("skipped", "test_b"), outcome("failed", "test_a[z]")], "failed: test_a"),
        ([outcome("passed"), outcome("skipped", "test_b")], "skipped: test_b"),
        ([outcome("passed", shown=("pad", "gguf")), outcome("passed", shown=("pad",))], "gguf, pad"),
        ([outcome("passed", shown=("pad",)), outcome("failed", "test_b")], "failed: test_b"),
    ],
)
def test_a_cell_is_yes_only_if_all_its_tests_passed(outcomes, expected):
    assert cell(outcomes) == expected


def test_a_row_has_the_outcomes_of_its_own_family():
    outcomes = [outcome("passed"), outcome("failed", family="opt"), outcome("passed", capability="search")]
    _head, rule, llama, opt = table(outcomes, ["llama", "opt"]).splitlines()
    assert rule == "|---|---|---|---|---|---|---|"
    assert cells(llama) == ["llama", "no test", "yes", "yes", "no test", "no test", "no test"]
    assert cells(opt) == ["opt", "no test", "failed: test_a", *["no test"] * 4]


def test_outcomes_are_read_from_the_run_itself(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "each = pytest.mark.parametrize('name', ['llama', 'opt', 'bloom', 'phi'])\n"
        "@pytest.fixture\ndef broken(name):\n    assert name != 'phi'\n"
        "@each\n@pytest.mark.shows('search')\ndef test_a(name, broken, record_property):\n"
        "    record_property('shown', name)\n    assert name != 'opt'\n"
        "    if name == 'bloom':\n        pytest.skip('not here')\n"
        "@each\ndef test_that_shows_nothing(name):\n    pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    shows: what\n    gpu: device\n")
    command = [sys.executable, "-m", "pytest", "-q", *REPORT, "--junitxml=report.xml", "-p", "no:cacheprovider"]
    # Where the conftest finds its helpers.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert "warning" not in done.stdout
    found = read_report((tmp_path / "report.xml").read_text())
    assert [(each.family, each.capability, each.test, each.result) for each in found] == [
        ("llama", "search", "test_a[llama]", "passed"),
        ("opt", "search", "test_a[opt]", "failed"),
        ("bloom", "search", "test_a[bloom]", "skipped"),
        ("phi", "search", "test_a[phi]", "failed"),
    ]
    assert found[0].shown == ("llama",)


def test_only_the_block_between_the_marks_is_rewritten():
    text = f"before\n{START}\nold\n{END}\nafter\n"
    assert replaced(text, "new") == f"before\n{START}\nnew\n{END}\nafter\n"
    assert replaced(f"a\n{START}\n{END}\nb", "new") == f"a\n{START}\nnew\n{END}\nb"
    for broken in ("no marks", f"{END} {START}", f"{text}{text}"):
        with pytest.raises(ValueError, match="once each"):
            committed(broken)
