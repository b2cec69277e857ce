"""The verb search as a user drives it."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

pytest.importorskip("optuna")

from tests.cli.test_prune import run
from tests.helpers.pages import read


def arguments(texts, out, *more):
    small = ("--pool", 8, "--counts", "2,4", "--lengths", 16, "--seqlen", 24, "--windows", 6, "--held-out-windows", 4)
    report = ("--eval-text", texts / "report.txt", "--eval-seqlen", 32, "--eval-windows", 4)
    text = ("--calibration", texts / "text.txt", "--eval", texts / "search.txt")
    return ("search", texts / "model", "--out", out, "--ratio", 0.4, "--round-to", 1, *small, *text, *report, *more)


def test_search_saves_the_best_plan_and_goes_on_when_asked_for_more(texts, tmp_path):
    out = tmp_path / "pruned"
    done = run(*arguments(texts, out, "--trials", 9))
    assert done.returncode == 0, done.stderr
    for expected in ("9 trials", "held out", "asked to remove 40.00%", "the search never saw", "saved"):
        assert expected in done.stdout
    model = AutoModelForCausalLM.from_pretrained(out)
    plan = json.loads((out / "plan.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == plan["params_after"] < plan["params_before"]
    report = json.loads((out / "report.json").read_text())
    assert len(report["trials"]) == 9
    assert report["best"]["value"] <= min(b["value"] for b in report["baselines"] if b["value"] is not None)
    overlap = report["texts"]["report"]["overlap"]
    assert overlap["search"] == overlap["held out"] == 0
    page = (out / "report.html").read_text()
    assert "Search with adapruner" in page
    assert "Units of every layer" in page
    sides = report["parameters"]
    assert f"parameters {sides['dense']:,} {sides['pruned']:,}" in read(page).text
    assert report["perplexity"].keys() == report["weight bytes"].keys() == sides.keys()
    assert "search:" in (out / "recipe.yaml").read_text()

    again = run(*arguments(texts, out, "--trials", 11, "--overwrite"))
    assert again.returncode == 0, again.stderr
    later = json.loads((out / "report.json").read_text())
    assert [t["params"] for t in later["trials"][:9]] == [t["params"] for t in report["trials"]]
    assert len(later["trials"]) == 11


def test_a_recipe_of_a_search_can_be_run_again(texts, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--trials", 3, "--shape", "per-layer", "--sampler", "random", "--no-proof")
    assert run(*arguments(texts, first, *options)).returncode == 0
    report = ("--eval-text", texts / "report.txt", "--eval-seqlen", 32, "--eval-windows", 4, "--no-proof")
    done = run("search", texts / "model", "--out", second, "--recipe", first / "recipe.yaml", *report)
    assert done.returncode == 0, done.stderr
    one, other = (json.loads((out / "report.json").read_text()) for out in (first, second))
    assert one["config"] == other["config"]
    assert one["best"] == other["best"]
    assert one["perplexity"] == other["perplexity"]


def test_a_recipe_of_another_verb_is_refused(texts, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("search: {ratio: 0.3}\n")
    done = run("prune", texts / "model", "--recipe", recipe, "--out", tmp_path / "pruned")
    assert done.returncode == 2
    assert "holds the recipe of a search, expected that of a prune" in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--trials", 0), "trials must be a whole number from 1, got 0"),
        (("--method", "magic"), "unknown method 'magic'; choose from adapruner"),
        (("--pool", 3), "a subset of 4 samples is larger than the pool of 3"),
        (("--pool", 9999), "needed"),
        (("--stop", "often"), "stop must be a p-value or none, got 'often'"),
        (("--stop", "2"), "p-value"),
        (("--storage", "nowhere"), "expected journal:FILE or a database URL"),
        (("--workers", 0), "workers must be at least 1, got 0"),
        (("--windows", 100000), "windows of 24 tokens; wanted 100000 to search on and 4 to hold out"),
        (("--ratio", 0.97), "out of reach"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(texts, tmp_path, more, message):
    out = tmp_path / "pruned"
    done = run(*arguments(texts, out, *more))
    assert done.returncode == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not out.exists()


def test_results_are_not_reported_on_text_that_was_searched_on(texts, tmp_path):
    done = run(*arguments(texts, tmp_path / "pruned", "--eval-text", texts / "search.txt"))
    assert done.returncode == 2
    assert "must be reported on text that the search never saw" in done.stderr


def test_a_search_without_a_text_to_report_on(texts, tmp_path):
    out = tmp_path / "pruned"
    done = run(*arguments(texts, out, "--eval-text", "none", "--trials", 2, "--no-proof"))
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert "perplexity" not in report
    assert "report" not in report["texts"]


RECOVERY = "cutoff: 24\nbatch: 4\nmicro_batch: 2\nval_rows: 4\nlr: 0.01\nlora_r: 4\nmax_steps: 3\n"


def recovered_arguments(texts, out, *more):
    """A search with the recovery of three steps; its recipe lies beside the output."""
    recipe = out.with_name("lora.yaml")
    recipe.write_text(RECOVERY)
    recovery = ("--recover", "--recover-data", texts / "text.txt", "--recover-recipe", recipe)
    return arguments(texts, out, "--trials", 2, *recovery, *more)


def test_a_search_recovers_in_one_command(texts, tmp_path):
    out, plain = tmp_path / "out", tmp_path / "plain"
    done = run(*recovered_arguments(texts, out, "--recover-steps", 4))
    assert done.returncode == 0, done.stderr
    assert "4 steps over" in done.stdout
    assert "reloaded in a fresh process" in done.stdout
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (recipe["search"]["ratio"], recipe["recovery"]["config"]["max_steps"]) == (0.4, 4)
    report = json.loads((out / "report.json").read_text())
    sides = report["recovery"]["perplexity"]
    assert sides["before"] == report["perplexity"]["pruned"] != sides["after"]
    assert report["proof"]["argmax_agreement"] == 1
    page = read((out / "report.html").read_text()).text
    for expected in ("Perplexity, recovered", "4 steps of training on", "Reopened in a fresh process"):
        assert expected in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.yaml", "out", "out-search"]

    # The weights are the recovered ones, of the same plan.
    assert run(*arguments(texts, plain, "--trials", 2, "--no-proof")).returncode == 0
    assert (plain / "plan.json").read_text() == (out / "plan.json").read_text()
    one, other = (load_file(path / "model.safetensors") for path in (out, plain))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_recovery_that_fails_leaves_the_found_model_and_its_report(texts, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise FloatingPointError("the loss of step 2 is nan")

    monkeypatch.setattr("pruneengine.jobs.recover_pruned.recover", fail)
    out = tmp_path / "out"
    done = run(*recovered_arguments(texts, out, "--no-proof"))
    assert done.returncode == 2
    assert f"the loss of step 2 is nan. The pruned model without recovery is saved in {out}" in done.stderr
    plan, report = (json.loads((out / name).read_text()) for name in ("plan.json", "report.json"))
    assert sum(t.numel() for t in load_file(out / "model.safetensors").values()) == plan["params_after"]
    assert len(report["trials"]) == 2
    assert "recovery" not in report
    assert "recovery" not in yaml.safe_load((out / "recipe.yaml").read_text())


def test_a_foreign_work_folder_is_refused_before_the_search(texts, tmp_path):
    work = tmp_path / "out.recovery"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    done = run(*recovered_arguments(texts, tmp_path / "out"))
    assert (done.returncode, f"work folder {work} holds other things" in done.stderr) == (2, True), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.yaml", "out.recovery"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--recover-steps", 3), "options of the recovery without --recover"),
        (("--recover",), "needs --recover-data"),
        (("--recover", "--recover-data", "absent.jsonl"), "'absent.jsonl' does not exist"),
    ],
)
def test_a_bad_recovery_is_refused_before_the_search(texts, tmp_path, more, message):
    done = run(*arguments(texts, tmp_path / "out", *more))
    assert (done.returncode, message in done.stderr, "loading" in done.stderr) == (2, True, False)
    assert not list(tmp_path.iterdir())
