"""The recovery from the command line: recover DIR, and prune --recover."""

import contextlib
import json
import re
import shutil
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pruneengine.common.files import check_space
from pruneengine.report.words import number
from tests.cli.test_prune import prune_arguments, run
from tests.helpers.pages import read
from tests.recovery.test_recover import at_micro_batch, stop

SMALL = ("--cutoff", 24, "--batch", 4, "--micro-batch", 2, "--max-steps", 4, "--eval-every", 2, "--val-rows", 4)


@pytest.fixture(scope="module")
def pruned(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("recover") / "pruned"
    options = ("--method", "magnitude_l1", "--ratio", 0.4, "--shape", "per-layer", "--allocation", "global")
    done = run(*prune_arguments(folder, *options, "--no-proof", "--out", out))
    assert done.returncode == 0, done.stderr
    return out


def fail(_loss):
    raise OSError("the machine went away")


def recover_arguments(pruned, folder, *more):
    text = folder / "text.txt"
    evaluation = ("--eval-text", "builtin-eval", "--eval-seqlen", 32, "--eval-windows", 4)
    return ("recover", pruned, "--data", text, *SMALL, *evaluation, *more)


def test_recover_measures_saves_and_carries_the_history_along(pruned, folder, tmp_path):
    out = tmp_path / "better"
    done = run(*recover_arguments(pruned, folder, "--lr", 0.01, "--out", out))
    assert done.returncode == 0, done.stderr
    for expected in ("perplexity", "validation loss by step: 0: ", "4 steps over", "reloaded in a fresh process"):
        assert expected in done.stdout
    assert (out / "plan.json").read_text() == (pruned / "plan.json").read_text()
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["config"]["method"] == "magnitude_l1"
    assert recipe["recovery"]["config"]["lr"] == 0.01
    report = json.loads((out / "report.json").read_text())
    assert report["method"] == "magnitude_l1"
    assert [step for step, _ in report["recovery"]["loss by step"]] == [1, 2, 3, 4]
    assert report["recovery"]["perplexity"]["before"] != report["recovery"]["perplexity"]["after"]
    assert report["verb"] == "recover"
    assert report["after"]["perplexity"] == report["recovery"]["perplexity"]["after"]
    # What the prune said of itself stays as it was; the recovery's is told apart.
    before = json.loads((pruned / "report.json").read_text())
    for key in ("recipe", "seconds", "hashes"):
        assert report[key] == before[key] != report["recovery"][key]
    assert report["recovery"]["recipe"]["config"]["lr"] == 0.01
    assert {"load", "train", "save"} <= report["recovery"]["seconds"].keys()
    assert report["recovery"]["proof"]["argmax_agreement"] == 1
    page = (out / "report.html").read_text()
    assert "4 steps of training; step" in page
    words = read(page).text
    for expected in (
        "Text: builtin-eval, windows of 32 tokens. Perplexity over ",
        "Options data",
        "lr 0.01",
        "The prune before it",
        "config.method magnitude_l1",
        "Reopened in a fresh",
    ):
        assert expected in words
    # The plan and the scores are the prune's, and so is the dense model's perplexity on another text.
    for expected in ("Units of every layer", "score of MLP channels", "Asked to remove 40.00%", "before after diff"):
        assert expected in words
    assert f"parameters {before['parameters']['dense']:,}" in words
    assert "<script" not in page
    assert [path.name for path in tmp_path.iterdir()] == ["better"]
    again = run("recover", pruned, "--recipe", out / "recipe.yaml", "--eval-text", folder / "text.txt",
                "--eval-seqlen", 32, "--eval-windows", 4, "--no-proof", "--out", tmp_path / "again")  # fmt: skip
    assert again.returncode == 0, again.stderr
    words = read((tmp_path / "again" / "report.html").read_text()).text
    assert f"dense before after difference perplexity {number(before['perplexity']['dense'])} " in words
    # Not the files: safetensors writes the names of tied weights into its header in any order.
    one, other = (load_file(path / "model.safetensors") for path in (out, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stopped_command_goes_on_and_another_recipe_does_not(pruned, folder, tmp_path):
    arguments = recover_arguments(pruned, folder, "--no-proof", "--out", tmp_path / "out")
    with at_micro_batch(7, fail):
        assert "went away" in run(*arguments).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.recovery"]
    other = run(*arguments, "--lr", 0.5)
    assert other.returncode == 2
    assert "lr 0.0001, now 0.5" in other.stderr
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "going on from step 2" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_prune_recovers_in_one_command(folder, tmp_path):
    options = tmp_path / "lora.yaml"
    options.write_text("cutoff: 24\nbatch: 4\nmicro_batch: 2\nval_rows: 4\nlr: 0.01\nlora_r: 4\n")
    recovery = ("--recover", "--recover-data", "builtin", "--recover-steps", 3, "--recover-recipe", options)
    out = tmp_path / "out"
    done = run(*prune_arguments(folder, "--method", "magnitude_l1", "--ratio", 0.4, *recovery, "--out", out))
    assert done.returncode == 0, done.stderr
    assert "3 steps over" in done.stdout
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (recipe["config"]["ratio"], recipe["recovery"]["config"]["lora_r"]) == (0.4, 4)
    report = json.loads((out / "report.json").read_text())
    assert report["recovery"]["perplexity"]["before"] == report["perplexity"]["pruned"]
    assert "Perplexity, recovered" in (out / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.yaml", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--targets", "qproj"), "LoRA target 'qproj' matches no linear of the model; near names: q_proj"),
        (("--targets", "re:["), "targets: '[' is no regular expression"),
        (("--dtype", "float16"), "a model in torch.float16 cannot be trained safely"),
        (("--batch", 5), "batch must be a multiple of micro_batch 2, got 5"),
        (("--data", "absent.jsonl"), "'absent.jsonl' does not exist"),
        (("--teacher", "absent/folder/x"), "no model at"),
        (("--distill-topk", 3), "distill_topk is 3: an option of a teacher"),
        (("--val-rows", 90_000), "leave none to train on"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(pruned, folder, tmp_path, options, message):
    done = run(*recover_arguments(pruned, folder, "--eval-text", "none", "--out", tmp_path / "out", *options))
    assert done.returncode == 2
    assert message in done.stderr
    assert "training on" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("report.json", "{", "cannot be read as a report"),
        ("report.json", "[]", "a report holds keys and values, got list"),
        ("recipe.yaml", "a: [", "cannot be read as a recipe"),
    ],
)
def test_a_damaged_history_is_told_before_the_model_is_loaded(pruned, folder, tmp_path, name, text, message):
    shutil.copytree(pruned, tmp_path / "damaged")
    (tmp_path / "damaged" / name).write_text(text)
    done = run("recover", tmp_path / "damaged", "--data", folder / "text.txt", "--out", tmp_path / "out")
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "loading" not in done.stderr


def test_a_second_recovery_keeps_what_is_known_of_the_first(pruned, folder, tmp_path):
    source = pruned
    for place, rate in enumerate((0.01, 0.02, 0.03), 1):
        options = ("--no-proof", "--max-steps", place, "--lr", rate, "--out", tmp_path / str(place))
        done = run(*recover_arguments(source, folder, *options))
        assert done.returncode == 0, done.stderr
        source = tmp_path / str(place)
    recipe = yaml.safe_load((source / "recipe.yaml").read_text())
    assert recipe["config"]["method"] == "magnitude_l1"
    rates = [found["config"]["lr"] for found in (*recipe["recovery"]["previous"], recipe["recovery"])]
    assert rates == [0.01, 0.02, 0.03]
    report = json.loads((source / "report.json").read_text())
    before, last = report["recovery"]["previous"], report["recovery"]
    assert [found["steps"] for found in (*before, last)] == [1, 2, 3]
    assert [found["recipe"]["config"]["lr"] for found in (*before, last)] == rates
    assert before[0]["perplexity"] == json.loads((tmp_path / "1" / "report.json").read_text())["recovery"]["perplexity"]
    assert not any("previous" in found or "loss by step" in found for found in (*before, last["recipe"]))
    words = read((source / "report.html").read_text()).text
    assert "Recovery 1 before it" in words
    assert "2 steps of training; step" in words
    assert "config.lr 0.01" in words


@contextlib.contextmanager
def full_disk_for_weights():
    def check(folder, needed):
        with mock.patch("shutil.disk_usage", return_value=SimpleNamespace(free=4096)):
            check_space(folder, needed)

    with mock.patch("pruneengine.checkpoint.write.check_space", check):
        yield


@pytest.mark.parametrize("verb", ["recover", "prune"])
def test_a_full_disk_at_the_end_says_where_the_training_is_kept(pruned, folder, tmp_path, verb):
    out, work, recipe = (tmp_path / name for name in ("out", "out.recovery", "lora.yaml"))
    recipe.write_text("cutoff: 24\nbatch: 4\nmicro_batch: 2\nval_rows: 4\nmax_steps: 2\n")
    if verb == "recover":
        arguments = recover_arguments(pruned, folder, "--eval-text", "none")
    else:
        recovery = ("--recover", "--recover-data", folder / "text.txt", "--recover-recipe", recipe)
        arguments = prune_arguments(folder, "--method", "magnitude_l1", "--ratio", 0.4, *recovery)
    with full_disk_for_weights():
        done = run(*arguments, "--no-proof", "--out", out)
    assert (done.returncode, out.exists()) == (2, False)
    expected = rf"[\d.]+ kB of weights do not fit in {tmp_path}: 4\.1 kB free\. The training is kept in {work}: make"
    assert re.search(expected, done.stderr), done.stderr
    with at_micro_batch(1, fail):
        again = run(*arguments, "--no-proof", "--out", out)
    assert (again.returncode, out.exists(), work.exists()) == (0, True, False), again.stderr


def test_a_teacher_runs_its_own_code_where_that_is_allowed(pruned, folder, tmp_path):
    teacher, recipe = tmp_path / "teacher", tmp_path / "lora.yaml"
    shutil.copytree(pruned, teacher)
    with (teacher / "modeling_pruned.py").open("a") as file:
        file.write("# no longer the file that needs no permission\n")
    recipe.write_text(f"cutoff: 24\nbatch: 4\nmicro_batch: 2\nval_rows: 4\nmax_steps: 1\nteacher: {teacher}\n")
    small = ("--recover-recipe", recipe, "--recover-data", folder / "text.txt", "--method", "magnitude_l1")
    for name, arguments in {
        "recovered": recover_arguments(pruned, folder, "--teacher", teacher, "--max-steps", 1, "--no-proof"),
        "pruned": prune_arguments(folder, "--ratio", 0.4, "--recover", *small, "--no-proof"),
    }.items():
        refused = run(*arguments, "--out", tmp_path / f"no-{name}")
        assert (refused.returncode, "then pass trust_remote_code=True" in refused.stderr) == (2, True), refused.stderr
        assert "training" not in refused.stderr, "known before work is spent"
        done = run(*arguments, "--trust-remote-code", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr


def test_options_that_do_nothing_are_refused(pruned, folder, tmp_path):
    done = run(*prune_arguments(folder, "--ratio", 0.4, "--recover-steps", 3, "--out", tmp_path / "out"))
    assert (done.returncode, "without --recover" in done.stderr) == (2, True)
    done = run(*prune_arguments(folder, "--ratio", 0.4, "--recover", "--out", tmp_path / "out"))
    assert (done.returncode, "needs --recover-data" in done.stderr) == (2, True)
    recipe = pruned.parent / "lora.yaml"
    recipe.write_text("{data: builtin, targets: [qproj]}")
    recovery = ("--recover", "--recover-recipe", recipe, "--out", tmp_path / "out")
    done = run(*prune_arguments(folder, "--ratio", 0.4, *recovery))
    assert (done.returncode, "'qproj' matches no linear" in done.stderr, "deciding" in done.stderr) == (2, True, False)
    done = run("recover", pruned, "--out", tmp_path / "out")
    assert (done.returncode, "give --data SPEC" in done.stderr) == (2, True)
    done = run("recover", pruned, "--recipe", pruned / "recipe.yaml", "--out", tmp_path / "out")
    assert (done.returncode, "nothing of a recovery" in done.stderr) == (2, True)
    done = run("recover", pruned, "--data", "builtin", "--out", pruned, "--overwrite")
    assert (done.returncode, "is what the run reads itself" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["recover", "prune", "search"])
def test_a_teacher_is_not_replaced_by_its_pupil(folder, tmp_path, verb):
    import shutil

    teacher = tmp_path / "teacher"
    shutil.copytree(folder / "model", teacher)
    (teacher / "plan.json").write_text("{}")
    options = {
        "recover": ("--data", "builtin", "--teacher", teacher),
        "prune": (
            "--method",
            "magnitude_l1",
            "--ratio",
            0.2,
            "--recover",
            "--recover-recipe",
            tmp_path / "recovery.yaml",
        ),
        "search": ("--ratio", 0.2, "--recover", "--recover-recipe", tmp_path / "recovery.yaml"),
    }
    (tmp_path / "recovery.yaml").write_text(f"data: builtin\nteacher: {teacher}\n")
    done = run(verb, folder / "model", *options[verb], "--out", teacher, "--overwrite")
    assert (done.returncode, "is what the run reads itself" in done.stderr) == (2, True), done.stderr
    assert (teacher / "model.safetensors").is_file()


def test_a_loss_that_is_not_finite_is_one_line(pruned, folder, tmp_path):
    arguments = recover_arguments(pruned, folder, "--eval-text", "none", "--no-proof", "--lr", 0.01)
    out, work = tmp_path / "out", tmp_path / "out.recovery"
    with at_micro_batch(7, lambda loss: loss * float("nan")):
        done = run(*arguments, "--val-rows", 0, "--out", out)
    assert (done.returncode, [path.name for path in tmp_path.iterdir()]) == (2, [work.name])
    expected = "gradient of step 4 is not finite: training stopped; last good state: step 2"
    assert expected in done.stderr
    assert f"delete {work} and begin anew" in done.stderr

    shutil.rmtree(work)
    with at_micro_batch(7, lambda loss: loss * float("nan")):
        done = run(*arguments, "--out", out)
    assert (done.returncode, [path.name for path in tmp_path.iterdir()]) == (0, [out.name]), done.stderr
    assert "warning: the gradient of step 4 is not finite: the training stopped there" in done.stderr
    found = json.loads((out / "report.json").read_text())["recovery"]
    assert (found["steps"], found["best step"]) == (3, 2)
    assert found["stopped early"] == "the gradient of step 4 is not finite"
    assert "the training stopped there; the weights are those of step 2" in read((out / "report.html").read_text()).text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FloatingPointError("the loss of step 2 is nan"), "the loss of step 2 is nan"),
        (ValueError("no such run"), "no such run"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["nan", "value", "memory"],
)
def test_a_recovery_that_fails_leaves_the_pruned_model(folder, tmp_path, error, said):
    out = tmp_path / "out"
    options = ("--method", "magnitude_l1", "--ratio", 0.4, "--recover", "--recover-data", folder / "text.txt")
    arguments = prune_arguments(folder, *options, "--no-proof", "--out", out)
    with mock.patch("pruneengine.jobs.recover_pruned.recover", side_effect=error):
        done = run(*arguments)
        assert done.returncode == 2
        assert f"error: {said}. The pruned model without recovery is saved in {out}; to try again" in done.stderr
        plan, report = (json.loads((out / name).read_text()) for name in ("plan.json", "report.json"))
        assert sum(t.numel() for t in load_file(out / "model.safetensors").values()) == plan["params_after"]
        assert "recovery" not in report
        if isinstance(error, ValueError):
            with full_disk_for_weights():
                done = run(*arguments, "--overwrite")
            assert f"error: {said}. Nor could the pruned model without recovery be saved: " in done.stderr
            assert "do not fit" in done.stderr


def test_a_work_folder_is_refused_before_the_prune_and_an_interrupted_training_goes_on(folder, tmp_path):
    out, work, recipe = (tmp_path / name for name in ("out", "out.recovery", "lora.yaml"))
    recipe.write_text("cutoff: 24\nbatch: 4\nmicro_batch: 2\nval_rows: 4\neval_every: 2\n")
    recovery = ("--recover", "--recover-data", folder / "text.txt", "--recover-recipe", recipe)

    def pruning(steps=4, ratio=0.4):
        more = ("--method", "magnitude_l1", "--ratio", ratio, *recovery, "--recover-steps", steps, "--no-proof")
        done = run(*prune_arguments(folder, *more, "--out", out))
        return done, "deciding what to remove" in done.stderr

    work.mkdir()
    (work / "notes.txt").write_text("mine")
    done, pruned = pruning()
    assert (done.returncode, pruned, out.exists()) == (2, False, False)
    assert f"work folder {work} holds other things than a recovery" in done.stderr
    shutil.rmtree(work)

    with at_micro_batch(7, stop):
        done, _ = pruning()
    assert done.returncode != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [recipe.name, work.name]
    done, pruned = pruning(steps=5)
    assert (done.returncode, pruned, out.exists()) == (2, False, False)
    assert "other settings: max_steps 4, now 5;" in done.stderr
    # Only the pruned model tells that it is another one.
    done, _ = pruning(ratio=0.2)
    assert (done.returncode, "other settings: model " in done.stderr) == (2, True)
    assert json.loads((out / "plan.json").read_text())["asked"] == 0.2
    shutil.rmtree(out)
    done, _ = pruning()
    assert (done.returncode, work.exists()) == (0, False), done.stderr
    assert json.loads((out / "report.json").read_text())["recovery"]["resumed from step"] == 2


def test_the_page_of_a_prune_shows_its_compensation(folder, tmp_path):
    out = tmp_path / "out"
    options = ("--method", "magnitude_l1", "--ratio", 0.4, "--compensate", "least-squares", "--no-proof")
    done = run(*prune_arguments(folder, *options, "--out", out))
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "report.json").read_text())["compensation"]["held-out error"]
    fitted = sum(row["ridge"] is not None for row in rows)
    page = read((out / "report.html").read_text()).text
    assert f"By least-squares, sequential: {fitted} of {len(rows)} groups were refitted" in page
    assert all(row["group"] in page for row in rows)
