"""The verbs eval and compare as a user drives them."""

import json

import pytest

from tests.cli.test_prune import run
from tests.helpers.tiny import tiny_model


def test_eval_keeps_results_that_compare_reads(folder, tmp_path):
    from tests.helpers.tiny_tasks import write_task

    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    tasks = write_task(tmp_path / "tasks", items=4)
    pruned = tmp_path / "pruned"
    options = ("--method", "magnitude_l1", "--ratio", 0.4, "--out", pruned, "--no-proof", "--eval-text", "none")
    assert run("prune", folder / "model", *options).returncode == 0
    asked = ("--tasks", "piqa_tiny", "--include-path", tasks, "--limit", 3)
    windows = ("--text", folder / "text.txt", "--seqlen", 32, "--windows", 3)
    done = run("eval", folder / "model", *asked, *windows, "--out", tmp_path / "dense.json")
    assert done.returncode == 0, done.stderr
    assert "3 of 4" in done.stdout
    assert not (folder / "model" / "results.json").exists()
    assert run("eval", pruned, *asked, "--batch-size", "auto:2").returncode == 0
    done = run("eval", pruned, *windows, "--dense", folder / "model")
    assert done.returncode == 0, done.stderr
    assert f"kept in {pruned / 'results.json'}" in done.stdout
    assert "in turn" in done.stdout
    sizes = [line for line in done.stdout.splitlines() if "bytes of KV cache a token" in line]
    assert [line.partition(":")[0] for line in sizes] == [str(pruned), str(folder / "model")]
    assert len({line.partition(":")[2] for line in sizes}) == 2
    kept = json.loads((pruned / "results.json").read_text())
    assert (list(kept["tasks"]), len(kept["texts"])) == (["piqa_tiny"], 1)
    done = run("compare", tmp_path / "dense.json", pruned)
    assert done.returncode == 0, done.stderr
    for expected in ("dense.json", "pruned", "piqa_tiny, acc_norm", "nats ±", "KV cache", "times the dense model"):
        assert expected in done.stdout
    done = run("compare", tmp_path / "dense.json", folder)
    assert (done.returncode, "no results at" in done.stderr) == (2, True)


def test_results_of_another_model_are_not_overwritten(folder, tmp_path):
    kept = tmp_path / "results.json"
    windows = ("--text", folder / "text.txt", "--seqlen", 32, "--windows", 2, "--out", kept)
    assert run("eval", folder / "model", *windows).returncode == 0
    before = kept.read_text()
    tiny_model("llama-gqa-tied", seed=1, vocab_size=256).save_pretrained(tmp_path / "other")
    for file in (folder / "model").glob("tokenizer*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    done = run("eval", tmp_path / "other", *windows)
    assert done.returncode == 2
    assert f"holds results of other weights ({folder / 'model'}, float32)" in done.stderr
    done = run("eval", folder / "model", *windows, "--dtype", "bfloat16")
    assert done.returncode == 2
    assert f"holds results of {folder / 'model'} in float32, not in bfloat16; choose another --out" in done.stderr
    assert kept.read_text() == before


def test_models_of_one_name_are_told_apart_by_their_folders(folder, tmp_path):
    asked = ("--text", folder / "text.txt", "--seqlen", 32, "--windows", 2, "--out")
    files = [tmp_path / path / "results.json" for path in ("a/pruned", "b/pruned", "c/b/other")]
    for file in files:
        file.parent.mkdir(parents=True)
    assert run("eval", folder / "model", *asked, files[0]).returncode == 0
    for file in files[1:]:
        file.write_text(files[0].read_text())
    done = run("compare", files[0], files[1].parent, files[2])
    assert done.returncode == 0, done.stderr
    heading = next(line for line in done.stdout.splitlines() if "other" in line)
    assert [cell.strip() for cell in heading.split("┃") if cell.strip()] == ["a/pruned", "b/pruned", "other"]


def test_eval_on_builtin_text_says_that_it_is_a_smoke_test(folder):
    done = run("eval", folder / "model", "--seqlen", 32, "--windows", 2)
    assert done.returncode == 0, done.stderr
    assert "builtin text is for smoke tests" in done.stdout


def test_eval_of_a_foreign_folder_says_that_nothing_is_kept(folder, tmp_path):
    asked = ("eval", folder / "model", "--text", folder / "text.txt", "--seqlen", 32, "--windows", 2)
    done = run(*asked)
    assert done.returncode == 0, done.stderr
    said = "is not pruneengine's to write into: results are only shown; --out FILE keeps them"
    assert done.stderr.index(said) < done.stderr.index("loading")
    assert "kept in" not in done.stdout
    done = run(*asked, "--out", tmp_path / "found.json")
    assert (said in done.stderr, f"kept in {tmp_path / 'found.json'}" in done.stdout) == (False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "nothing", "--include-path", "nowhere"), "include path 'nowhere'"),
        (("--tasks", ","), "expected names of tasks"),
        (("--limit", 0), "limit=0"),
        (("--batch-size", 0), "batch_size=0"),
        (("--batch-size", "auto:0"), "batch_size='auto:0': expected a positive number of sequences, auto or auto:N"),
        (("--batch-size", "many"), "batch_size='many'"),
        (("--windows", 0), "0"),
        (("--text", "builtin-eval", "--seqlen", 1), "windows of 1 token(s)"),
        (("--dense", "nowhere/at/all"), "no model at"),
        (("--out", "recipe.txt"), "no JSON"),
        (("--out", "."), "is a folder, expected a file"),
    ],
)
def test_bad_input_to_eval_is_refused_before_the_model_is_loaded(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.txt").write_text("not results")
    done = run("eval", folder / "model", *options)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "loading" not in done.stderr
