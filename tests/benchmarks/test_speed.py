"""The benchmarks' gates let right results through and stop wrong ones; their files keep one row a key."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pruneengine
from benchmarks.speed import memory, peers, statistics_pass
from benchmarks.speed.compare import Target, table, verdicts
from pruneengine.bench import environment
from pruneengine.bench.record import GateError, Setting, read, record
from pruneengine.bench.timing import interleave
from tests.helpers.tiny import tiny_model, tiny_tokens

MLP = pruneengine.PruneConfig("magnitude_l1", 0.25, ("mlp",))
SETTING = Setting("theme", "a processor, 2 cores", 2, "abc1234", "2026-01-31")


def row(provider: str, values: list[float], **changes):
    return dataclasses.replace(SETTING, **changes).row("case", provider, "pass", "s", values, "torch 1")


def test_interleave_turns_the_order_and_drops_the_warm_up():
    calls = []

    def provider(name):
        return lambda: calls.append(name) or {"pass": float(len(calls))}

    values = interleave({name: provider(name) for name in "ab"}, rounds=3, warmup=1)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert values == {"a": {"pass": [3, 6, 7]}, "b": {"pass": [4, 5, 8]}}


def test_a_row_holds_median_and_percentiles():
    found = row("ours", [5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    assert (found.median, found.p20, found.p80, found.rounds) == (3.5, 2.0, 5.0, 6)


def test_record_replaces_the_same_key_and_keeps_the_others(tmp_path):
    record([row("ours", [1.0]), row("theirs", [2.0])], tmp_path)
    record([row("ours", [1.5]), row("ours", [9.0], commit="fff0000-dirty")], tmp_path)
    record([row("ours", [4.0], theme="other")], tmp_path)
    lines = read(tmp_path / "theme.csv")
    assert [(line["provider"], line["commit"], line["median"]) for line in lines] == [
        ("theirs", "abc1234", "2"),
        ("ours", "abc1234", "1.5"),
        ("ours", "fff0000-dirty", "9"),
    ]
    assert [line["theme"] for line in read(tmp_path / "other.csv")] == ["other"]


def test_a_commit_is_dirty_where_a_tracked_file_differs_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        named = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(environment, "ROOT", tmp_path.resolve())
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    tracked = [tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "ops.csv"]
    for path in tracked:
        path.write_text("first")
    git("init")
    git("add", ".")
    git("commit", "--no-verify", "-m", "first")
    clean = environment.commit()
    assert len(clean) >= 7
    (tmp_path / "notes.txt").write_text("untracked")
    tracked[1].write_text("a result")
    assert environment.commit() == clean
    tracked[0].write_text("second")
    assert environment.commit() == f"{clean}-dirty"


def test_table_and_verdicts_compare_medians():
    rows = [row("ours", [1.0]), row("theirs", [4.0])]
    assert [line.split()[-1] for line in table(rows, "theirs").splitlines()[1:]] == ["0.25", "1.00"]
    met, missed = verdicts(rows, [Target("pass", "ours", "theirs", 0.25), Target("pass", "ours", "theirs", 0.2)])
    assert met.startswith("met: case: pass of ours is 0.250 x theirs")
    assert missed.startswith("MISSED")
    assert verdicts(rows, [Target("pass", "ours", "absent", 1.0)]) == []


def test_the_masked_gate_passes_and_stops_a_wrong_compaction(monkeypatch):
    model, tokens = tiny_model(), tiny_tokens(2)
    peers.check_masked(model, MLP, tokens)
    assert model.model.layers[0].mlp.up_proj.out_features == 72

    right = pruneengine.prune

    def wrong(pruned, config):
        right(pruned, config=config)
        with torch.no_grad():
            pruned.model.layers[1].mlp.down_proj.weight[:, 0] += 0.1

    monkeypatch.setattr(pruneengine, "prune", wrong)
    with pytest.raises(GateError, match="logits of the pruned model"):
        peers.check_masked(model, MLP, tokens)


@pytest.mark.parametrize("change", [{"widths": [1152, 1160]}, {"linears": 87}, {"params": 99}])
def test_the_peers_gate_stops_unequal_work(change):
    right = {"widths": [1152], "linears": 90, "params": 100}
    peers.check_equal({"ours": right, "theirs": right}, width=1152, linears=90)
    with pytest.raises(GateError):
        peers.check_equal({"ours": right, "theirs": right | change}, width=1152, linears=90)


def test_a_worker_prunes_a_fresh_copy_each_time(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    worker = peers.worker(Path(sys.executable), "pruneengine-l1", str(tmp_path), threads=1)
    try:
        first, second = worker.ask("go"), worker.ask("go")
    finally:
        worker.close()
    assert f"torch {torch.__version__.split('+')[0]}" in worker.versions
    assert first["seconds"].keys() == {"prune"}
    assert first["widths"] == second["widths"] != [72]
    assert first["params"] == second["params"] < sum(p.numel() for p in tiny_model().parameters())


def test_a_worker_that_ends_says_why():
    with pytest.raises(RuntimeError, match="pruneengine-l1 ended"):
        peers.worker(Path(sys.executable), "pruneengine-l1", "/no/such/folder", threads=1)


def test_the_statistics_gate_passes_and_stops_a_wrong_statistic(monkeypatch):
    model, tokens = tiny_model(), tiny_tokens(2)
    statistics_pass.check_statistics(model, tokens)
    right = pruneengine.calibrate

    def wrong(*arguments):
        found = right(*arguments)
        next(iter(found.tensors["signed"].values()))[1, 0] += 1.0
        return found

    monkeypatch.setattr(pruneengine, "calibrate", wrong)
    with pytest.raises(GateError, match="signed of"):
        statistics_pass.check_statistics(model, tokens)


@pytest.mark.parametrize("name", statistics_pass.PASSES)
def test_every_pass_runs_and_only_the_full_one_has_weight_gradients(name):
    model = tiny_model()
    statistics_pass.PASSES[name](model, list(tiny_tokens(4).split(2)))
    assert any(p.grad is not None for p in model.parameters()) == (name == "full backward")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_sees_memory_that_was_freed_before_the_end():
    found = memory.peak(lambda *_: torch.ones(16_000_000).sum(), tiny_model(), tiny_tokens())
    assert 60 < found["above the model"] < 90
