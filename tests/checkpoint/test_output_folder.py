"""Output folders: only what we wrote is ever replaced, and a finished result is never thrown away."""

import os
import socket
import subprocess
import sys

import pytest

from pruneengine.checkpoint import output_folder
from pruneengine.checkpoint.output_folder import OWNER_FILE, claim_output, finished_folder, remove_leftovers


@pytest.fixture
def result(tmp_path):
    """An earlier result of ours."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "plan.json", "tokenizer.json", "results.json"):
        (folder / name).write_text("old")
    return folder


def finish(output, content="new", meanwhile=lambda: None):
    with finished_folder(output) as folder:
        (folder / "config.json").write_text(content)
        meanwhile()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_and_an_empty_one_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "deep/er"):
        finish(claim_output(tmp_path / name))
        assert names(tmp_path / name) == ["config.json"]
    assert names(tmp_path) == ["deep", "empty", "new"]


def test_an_earlier_result_is_replaced_where_that_is_asked_for_and_whole(result):
    with pytest.raises(FileExistsError, match=r"is not empty; pass overwrite=True \(--overwrite\)"):
        claim_output(result)
    finish(claim_output(result, overwrite=True))
    assert names(result) == ["config.json"]
    assert names(result.parent) == ["out"]


def test_it_is_replaced_where_the_system_swaps_no_folders(result, monkeypatch):
    monkeypatch.setattr(output_folder, "_exchange", lambda *_: False)
    finish(claim_output(result, overwrite=True))
    assert (names(result), names(result.parent)) == (["config.json"], ["out"])


@pytest.mark.parametrize("ours", ["tokenization_baichuan.py", "additional_chat_templates", "spiece.model"])
def test_whatever_a_tokenizer_saves_is_ours(result, ours):
    (result / ours).mkdir() if "." not in ours else (result / ours).write_text("old")
    assert claim_output(result, overwrite=True).replaces is not None


@pytest.mark.parametrize("foreign", ["thesis.tex", "photos", ".git"])
def test_what_we_did_not_write_is_named_and_stays(result, foreign):
    (result / foreign).mkdir() if "." not in foreign[1:] else (result / foreign).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"did not write \({foreign}\): not replaced"):
        claim_output(result, overwrite=True)
    assert (result / foreign).exists()


def test_what_a_tokenizer_writes_is_ours(result):
    (result / "additional_chat_templates").mkdir()
    assert claim_output(result, overwrite=True).replaces


def test_a_run_of_another_container_is_known_by_its_lock(tmp_path):
    """Its process number means nothing here, and both have one host name."""
    code = (
        "import os, sys\nfrom pruneengine.checkpoint import output_folder as module\n"
        f"module.os.getpid = lambda: {2**22 + 1}\n"
        "with module.finished_folder(module.claim_output(sys.argv[1])) as folder:\n    print(folder, flush=True)\n"
        "    sys.stdin.read()\n    (folder / 'config.json').write_text('new')\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    folder = other.stdout.readline().strip()
    said = []
    remove_leftovers(claim_output(tmp_path / "out"), said.append)
    assert said == []
    assert os.path.isdir(folder)
    other.communicate()
    assert other.returncode == 0
    assert names(tmp_path / "out") == ["config.json"]


def test_leftovers_of_a_name_with_brackets_are_found(tmp_path):
    left = tmp_path / ".out[1]-abc"
    left.mkdir()
    (left / OWNER_FILE).write_text(f"{socket.gethostname()} {2**22 + 1}\n")
    remove_leftovers(claim_output(tmp_path / "out[1]"), lambda _line: None)
    assert not left.exists()


def test_a_folder_of_other_things_a_file_and_a_mount_point_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other things than a model; it is not replaced"):
        claim_output(tmp_path / "other", overwrite=True)
    with pytest.raises(FileExistsError, match=r"no export\.json"):
        claim_output(tmp_path / "other", overwrite=True, mark="export.json")
    with pytest.raises(FileExistsError, match="is a file, expected a folder"):
        claim_output(tmp_path / "file", overwrite=True)
    with pytest.raises(FileExistsError, match="is a mount point"):
        claim_output("/proc", overwrite=True)


@pytest.mark.parametrize("inside", ["", "dense", "statistics/a.safetensors"])
def test_what_the_run_reads_or_keeps_may_not_lie_in_its_output(tmp_path, inside):
    given = tmp_path / "out" / inside
    with pytest.raises(
        ValueError, match=r"is what the run reads itself" if not inside else "holds .*, which the run needs"
    ):
        claim_output(tmp_path / "out", overwrite=True, inputs=["elsewhere", given])
    claim_output(tmp_path / "out", inputs=[tmp_path, tmp_path / "output", "org/name"])


def test_what_appears_while_a_run_works_is_not_deleted_and_the_result_is_kept(tmp_path):
    output = claim_output(tmp_path / "out")

    def appear():
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="has appeared while this run worked; the finished result is") as caught:
        finish(output, meanwhile=appear)
    assert (tmp_path / "out" / "a.txt").read_text() == "mine"
    (kept,) = (path for path in tmp_path.iterdir() if path.name.startswith("out.finished-"))
    assert names(kept) == ["config.json"]
    assert str(kept) in str(caught.value)


def test_a_file_that_appears_is_not_deleted_either(tmp_path):
    output = claim_output(tmp_path / "out")
    with pytest.raises(FileExistsError, match="has appeared"):
        finish(output, meanwhile=lambda: (tmp_path / "out").write_text("mine"))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("change", ["a file more", "another folder", "gone"])
def test_a_result_that_changed_while_a_run_worked_is_not_replaced(result, change):
    output = claim_output(result, overwrite=True)

    def alter():
        if change == "a file more":
            (result / "notes.txt").write_text("mine")
        else:
            result.rename(result.with_name("moved"))
        if change == "another folder":
            result.mkdir()
            (result / "config.json").write_text("of another run")

    with pytest.raises(FileExistsError, match=r"has changed while this run worked.* is kept in"):
        finish(output, meanwhile=alter)
    if change != "gone":
        assert (result / "config.json").read_text() != "new"
    assert sum(name.startswith("out.finished-") for name in names(result.parent)) == 1


def test_two_runs_into_one_new_folder_keep_both_results(tmp_path):
    first, second = claim_output(tmp_path / "out"), claim_output(tmp_path / "out")
    finish(first, "first")
    with pytest.raises(FileExistsError, match="is kept in"):
        finish(second, "second")
    assert (tmp_path / "out" / "config.json").read_text() == "first"
    (kept,) = (path for path in tmp_path.iterdir() if path.name.startswith("out.finished-"))
    assert (kept / "config.json").read_text() == "second"


def test_a_move_that_fails_keeps_the_finished_result(result, monkeypatch):
    output = claim_output(result.with_name("new"))
    rename = type(result).rename

    def fail(self, target):
        if target == output.path:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(result), "rename", fail)
    with pytest.raises(OSError, match=r"No space left on device; the finished result is kept in .*new\.finished-"):
        finish(output)


def test_a_block_that_fails_changes_nothing(result):
    with pytest.raises(KeyError), finished_folder(claim_output(result, overwrite=True)):
        raise KeyError("wrong")
    assert (result / "config.json").read_text() == "old"
    assert names(result.parent) == ["out"]


def test_what_a_killed_run_left_is_removed_and_named_and_a_living_ones_is_not(tmp_path):
    code = (
        "import os, sys\nfrom pruneengine.checkpoint.output_folder import claim_output, finished_folder\n"
        "with finished_folder(claim_output(sys.argv[1])) as folder:\n    print(folder)\n    sys.stdout.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True)
    (left,) = tmp_path.iterdir()
    assert str(left) == killed.stdout.strip()
    foreign = tmp_path / ".out-abroad"
    foreign.mkdir()
    (foreign / OWNER_FILE).write_text("another-host 1\n")
    output, said = claim_output(tmp_path / "out"), []
    with finished_folder(output) as folder:
        (folder / "config.json").write_text("new")
        remove_leftovers(output, said.append)
        assert folder.is_dir()
        assert (folder / OWNER_FILE).read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    assert names(tmp_path) == [".out-abroad", "out"]
    assert names(tmp_path / "out") == ["config.json"]
    assert (
        said[-1] == f"removing {left}, which a killed run left"
        or said[0] == f"removing {left}, which a killed run left"
    )
    assert any("belongs to a run on another-host" in line for line in said)
