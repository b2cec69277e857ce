"""Reports of the ops' benchmark: verdicts, plots, the scripts and the verb around them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.speed import plot, profile_slowest
from benchmarks.speed import run as entry
from pruneengine.bench import runner
from pruneengine.bench.case import Case
from pruneengine.bench.cases import CASES
from pruneengine.bench.measure import OpRow
from pruneengine.bench.record import Setting, read, record
from pruneengine.bench.runner import BenchOptions
from pruneengine.bench.targets import verdicts

ROOT = Path(__file__).parents[2]
BY_TITLE = {case.title: case for case in CASES}


def rows_of(case: Case, on: str, shape: str, times: dict[str, float], threads: int = 1, share: float = 0.9):
    setting = Setting("ops", "a processor", threads, "abc1234", "2026-01-31")
    columns = {"op": case.op, "variant": case.name, "shape": shape, "dtype": "bf16", "on": on}
    values = [(name, "time", "s", seconds) for name, seconds in times.items()]
    values += [(name, "rate", "GB/s", 1 / seconds) for name, seconds in times.items()]
    values += [(name, "share", case.limit, share) for name in times] + [(case.limit, "rate", "GB/s", 20.0)]
    rows = [setting.row(f"{case.title}, {shape} bf16", n, q, unit, [v], "torch 1") for n, q, unit, v in values]
    return [OpRow(**vars(row), **columns) for row in rows]


def test_verdicts_of_a_cpu():
    case = BY_TITLE["weight_scores: |W|"]
    rows = rows_of(case, "cpu", "4096x11008", {"reference": 31.0, "cpp": 1.0}, share=0.5)
    rows += rows_of(case, "cpu", "4096x11008", {"reference": 31.0, "cpp": 0.5}, threads=2)
    assert [line.split(": ")[0] + line.split("cpp")[1] for line in verdicts(rows)] == [
        "met is 31.0 x as fast as reference, target 30.0",
        "MISSED is 50% of the read rate, target 70%",
        "met is 2.0 x as fast with 2 threads, target 1.7",
    ]
    near = rows_of(case, "cpu", "4096x11008", {"reference": 29.97, "cpp": 1.0}, share=0.6996)
    assert [line.split("cpp")[1] for line in verdicts(near)] == [
        " is 29.97 x as fast as reference, target 30.00",
        " is 69.96% of the read rate, target 70.00%",
    ]
    assert verdicts(rows_of(case, "cpu", "576x576", {"reference": 31.0, "cpp": 1.0})) == []


@pytest.mark.parametrize("op", ["gather_rows", "gather_columns"])
@pytest.mark.parametrize("variant", ["keep 0.5", "keep 0.8", "keep 0.5, given buffer", "keep 0.8, given buffer"])
def test_every_gather_is_judged(op, variant):
    rows = rows_of(BY_TITLE[f"{op}: {variant}"], "cpu", "4096x11008", {"reference": 1.0, "cpp": 1.0})
    assert [line.split(":")[0] for line in verdicts(rows)] == ["MISSED"]


def test_verdicts_of_a_gpu():
    rows = rows_of(
        BY_TITLE["select_mask: Wanda 50%, each row"], "cuda", "4096x11008",
        {"reference": 9.0, "compile": 0.5, "triton": 2.0, "cuda": 1.0},
    )  # fmt: skip
    assert [line.split(": ")[0] + line.split("cuda")[1] for line in verdicts(rows)] == [
        "met is 90% of the copy rate, target 85%",
        "met is 9.0 x as fast as reference, target 3.0",
        "MISSED is 0.5 x as fast as compile, target 1.0",
    ]


def test_plots_come_from_the_csv_alone(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rows = []
    for case in CASES[:4]:
        rows += rows_of(case, "cpu", "8x16", {"reference": 5.0, "cpp": 1.0})
        rows += rows_of(case, "cpu", "8x16", {"reference": 5.0, "cpp": 0.6}, threads=2)
    record(rows, tmp_path)
    lines = read(tmp_path / "ops.csv")
    assert {next(iter(run.values()))["threads"] for run in plot.newest(lines, "cpu", {"8x16"})} == {"1"}
    written = plot.draw(lines, "cpu", tmp_path, headline={"8x16"})
    assert [path.name for path in written] == ["ops-cpu-ratio.png", "ops-cpu-roofline.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert plot.draw(lines, "cuda", tmp_path) == []
    alone = [line for line in lines if line["provider"] != "reference"]
    assert [path.name for path in plot.draw(alone, "cpu", tmp_path, headline={"8x16"})] == ["ops-cpu-roofline.png"]
    assert "no ops-cpu-ratio.png: no case with a time of eager torch" in capsys.readouterr().out


def test_the_slowest_kernel_is_the_one_to_profile(tmp_path):
    rows = rows_of(CASES[0], "cuda", "8x16", {"triton": 1.0}, share=0.8)
    rows += rows_of(CASES[1], "cuda", "8x16", {"triton": 1.0, "compile": 2.0}, share=0.4)
    record(rows, tmp_path)
    assert profile_slowest.slowest(read(tmp_path / "ops.csv")) == (CASES[1], "triton")
    with pytest.raises(ValueError, match="no share of ours"):
        profile_slowest.slowest([])
    assert profile_slowest.titled("weight_scores: |W|") is BY_TITLE["weight_scores: |W|"]
    with pytest.raises(ValueError, match=r"unknown case 'weight_scores: W'; choose from 'weight_scores: \|W\|'"):
        profile_slowest.titled("weight_scores: W")


@pytest.mark.parametrize("status", [0, 1, 3])
def test_the_script_and_the_verb_run_the_same(monkeypatch, tmp_path, capsys, status):
    cli = pytest.importorskip("pruneengine.cli")
    seen = []
    monkeypatch.setattr(runner, "run", lambda options, **_: seen.append(options) or SimpleNamespace(exit_code=status))
    monkeypatch.setattr("benchmarks.speed.ops.run", runner.run)
    flags = ["--ops", "nm_mask", "--shapes", "8x16", "--rounds", "3", "--threads", "1,2", "--results", str(tmp_path)]
    for main, arguments in ((cli.main, ["bench"]), (entry.main, [])):
        monkeypatch.setattr(sys, "argv", ["program", *arguments, *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == status
    assert "error" not in capsys.readouterr().err
    assert seen[0] == seen[1] == BenchOptions(("nm_mask",), ("8x16",), rounds=3, threads=(1, 2), results=tmp_path)


@pytest.mark.parametrize("flags", [["--dtype", "float32"], ["--list"]])
def test_the_flags_of_ops_are_refused_for_other_themes(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", ["run.py", "ops", "peers", *flags])
    with pytest.raises(SystemExit, match="2"):
        entry.main()
    assert f"{flags[0]} is for ops alone; not for peers" in capsys.readouterr().err


def test_the_verb_lists_the_ops():
    pytest.importorskip("typer")
    from tests.cli.test_prune import run

    done = run("bench", "--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == runner.op_names()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_device_script_runs_dry(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "on_device.sh", "--dry-run", out],
        env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (out / "summary.txt").read_text()
    for name, why in (("build", "a dry run"), *((n, "no CUDA device") for n in ("cuda", "triton", "bench", "ncu"))):
        assert f"{name:<10} skipped: {why}" in summary
    assert "smoke      exit 0" in summary
    assert {line["op"] for line in read(out / "ops.csv")} == {"gate_scores"}
