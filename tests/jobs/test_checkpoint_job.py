"""The course of a job that makes a checkpoint: measures, warnings, seconds and files add up in one place."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruneengine import PruneConfig, SparseConfig
from pruneengine.checkpoint import reload_proof
from pruneengine.jobs import prune, prune_sparse
from pruneengine.jobs.checkpoint_job import CheckpointJob, CheckpointResult
from pruneengine.jobs.options import JobOptions
from pruneengine.jobs.texts import load_evaluation


@pytest.fixture
def job(folder, tmp_path):
    options = JobOptions(
        source=str(folder / "model"), out=tmp_path / "out", eval_text=str(folder / "text.txt"), eval_seqlen=32,
        eval_windows=2,
    )  # fmt: skip
    job = CheckpointJob.load(options, lambda _: None)
    job.evaluation = load_evaluation(options, job.tokenizer)
    return job


def test_a_change_is_measured_saved_and_proved(job):
    dense = job.dense()
    with torch.no_grad():
        job.model.lm_head.weight.mul_(2)
    pruned = job.changed()
    assert dense.params == pruned.params
    assert dense.perplexity.perplexity != pruned.perplexity.perplexity
    saved = job.store(recipe={"made": "here"}, report={"ratio": 0.5})
    assert json.loads((saved.path / "report.json").read_text()) == {"ratio": 0.5}
    assert torch.equal(AutoModelForCausalLM.from_pretrained(saved.path).lm_head.weight, job.model.lm_head.weight)
    result = CheckpointResult(dense=dense, pruned=pruned, saved=saved, text="more", seconds=job.clock.seconds)
    values = result.closing_values("once")
    assert list(values) == ["proof", "prompt", "continuation", "seconds"]
    assert (values["prompt"], values["continuation"]) == ("once", "more")
    assert list(values["seconds"]) == ["load", "evaluate", "save"]


def test_a_ruined_change_is_a_warning_behind_the_earlier_ones(job):
    job.warnings = ("earlier",)
    with torch.no_grad():
        job.model.model.norm.weight.fill_(3e38)
    assert job.changed().perplexity is None
    assert job.warnings[0] == "earlier"
    assert job.warnings[1].startswith("the changed model has no perplexity")


def test_without_a_recovery_nothing_is_trained_and_without_a_prompt_nothing_continued(job):
    assert job.plan_recovery(None) is None
    assert job.recover(None, job.measure(), store=lambda: pytest.fail("stored")) is None
    assert job.continuation(None, None) is None


@pytest.mark.parametrize(
    ("run", "config"),
    [
        (prune.run, PruneConfig(method="magnitude_l1", ratio=0.3)),
        (prune_sparse.run, SparseConfig(method="magnitude", sparsity=0.5)),
    ],
)
def test_a_proof_that_was_stopped_is_told_in_the_report(folder, tmp_path, monkeypatch, run, config):
    child = tmp_path / "child.py"
    child.write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(reload_proof, "CHILD", child)
    options = JobOptions(source=str(folder / "model"), out=tmp_path / "out", eval_text=None)
    (line,) = (line for line in run(config, options).warnings if "complete and unproved" in line)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["warnings"].count(line) == 1
    assert "proof" not in report
