"""The benchmark of the ops: its cases are right, its gate stops what is wrong, and its rows say what was timed."""

from __future__ import annotations

import itertools

import pytest
import torch

from pruneengine import ops
from pruneengine.bench import gate, runner, timing
from pruneengine.bench.case import Baseline, Case, Inputs, Work
from pruneengine.bench.cases import CASES
from pruneengine.bench.gate import covers, exactly, sums
from pruneengine.bench.providers import Provider
from pruneengine.bench.record import read
from pruneengine.bench.runner import BenchOptions
from pruneengine.bench.shapes import LLAMA_7B, Matrix, parse_shapes
from tests.helpers.ops_harness import OPS

CPU = torch.device("cpu")
BY_TITLE = {case.title: case for case in CASES}


class FakeTimer:
    """Runs the call once and says what is next on a list."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.calls = itertools.cycle(seconds or (1e-3,)), 0

    def sample(self, call, estimate: float) -> float:
        self.calls += 1
        call()
        return next(self.seconds)


def bench(tmp_path, timer=None, **options):
    told = []
    given = {"shapes": ("8x16",), "providers": ("reference",), "rounds": 2, "results": tmp_path} | options
    result = runner.run(BenchOptions(**given), told.append, timer or FakeTimer(), buffer_bytes=1024)
    return result, "\n".join(told)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_case_and_baseline_agrees_with_the_specification(case, dtype):
    work = case.make(Inputs(CPU, dtype), case.gate)
    expected = work.specified()
    with ops.use_backend("reference"):
        assert work.agree(work.ours(*work.inputs), expected) is None
        assert gate.failures_as_timed(work, [Provider("ours", work.ours, work.agree, "reference")]) == {}
    assert (work.loosely or work.agree)(work.reference(*work.inputs), expected) is None
    for baseline in work.baselines.values():
        assert (baseline.agree or work.agree)(baseline.run(*work.inputs), expected) is None
    assert work.moved > 0


def test_every_op_has_a_case():
    assert {case.op for case in CASES} == OPS


def test_inputs_are_the_same_each_time():
    first, second = (Inputs(CPU, torch.float32) for _ in range(2))
    assert torch.equal(first.normal(3, 4), second.normal(3, 4))
    assert torch.equal(first.kept(100, 0.8), second.kept(100, 0.8))
    assert len(first.kept(100, 0.8).unique()) == 80


def test_a_gather_of_columns_reads_whole_lines():
    inputs = Inputs(CPU, torch.bfloat16)
    assert inputs.touched(torch.tensor([0, 31, 32, 200]), 2) == 3 * 64
    case = BY_TITLE["gather_rows: keep 0.5"]
    assert case.make(inputs, Matrix(40, 100)).moved == 2 * 20 * 100 * 2


def test_the_judges_see_what_is_wrong():
    right = torch.arange(8.0)
    assert sums(right, right * (1 + 1e-6)) is None
    assert "off by" in sums(right * 1.01, right)
    assert "off by" in sums(right.log(), right)
    assert "shape" in sums(right[1:], right)
    assert "1 of 8 places" in exactly(right.clone().fill_(0).scatter_(0, torch.tensor(1), 9.0), torch.zeros(8))
    assert "torch.int32" in exactly(right.int(), right)
    assert covers(torch.tensor([True, True]), torch.tensor([True, False])) is None
    assert "1 that must" in covers(torch.tensor([False, True]), torch.tensor([True, False]))


def test_what_fails_the_gate_is_told_and_not_timed(tmp_path, monkeypatch):
    def broken(x):
        raise RuntimeError("no kernel\nimage")

    def wrong(inputs: Inputs, shape: Matrix) -> Work:
        x = inputs.normal(shape.rows, shape.columns)
        return Work((x,), lambda x: x.float() * 1.001, lambda up, x: up(x), sums, 1)

    def raising(inputs: Inputs, shape: Matrix) -> Work:
        return Work((inputs.normal(2, 2),), broken, lambda up, x: up(x), sums, 1)

    def impossible(inputs: Inputs, shape: Matrix) -> Work:
        raise MemoryError("too large")

    cases = [Case("op", name, "weight", "read", make, Matrix(3, 5)) for name, make in
             (("wrong", wrong), ("raising", raising), ("impossible", impossible))]  # fmt: skip
    monkeypatch.setattr(runner, "CASES", cases)
    monkeypatch.setattr(runner, "missing", lambda name, device: None)
    monkeypatch.setattr("pruneengine.ops.backends._why_not", lambda backend: None)
    result, told = bench(tmp_path, providers=("reference", "cpp"))
    assert result.exit_code == 1
    assert {row.provider for row in result.rows} == {"reference", "read"}
    assert "cpp         FAILED the gate, not timed: output 0 is off by 1.0e-03" in told
    assert "FAILED: op: raising, 8x16, cpp: RuntimeError: no kernel image" in told
    assert "FAILED: op: impossible, 8x16, case: MemoryError: too large" in told


def test_what_is_expected_shares_no_memory_with_what_is_judged():
    """A wrong result in the buffer that the formula returned must not be compared with itself."""
    x = torch.arange(8.0)
    buffer = torch.empty(8)

    def wrong(x):
        return buffer.copy_(x).add_(1)

    def make(inputs: Inputs, shape: Matrix) -> Work:
        baselines = {"wrong": Baseline(wrong)}
        return Work((x,), wrong, lambda up, x: buffer.copy_(x), exactly, 1, baselines=baselines)

    case = Case("op", "shared", "weight", "read", make, Matrix(1, 8))
    inputs = Inputs(CPU, torch.float32)
    assert gate.failures(case, inputs, ["reference"]) == {"wrong": "output 0 differs in 8 of 8 places"}
    judged = gate.failures_as_timed(make(inputs, case.gate), [Provider("compile", wrong, exactly)])
    assert judged == {"compile": "output 0 differs in 8 of 8 places"}


def test_a_run_that_plans_nothing_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nothing to measure on cpu: ops nm_mask; shapes 8x10; providers reference"):
        bench(tmp_path, ops=("nm_mask",), shapes=("8x10",))
    with pytest.raises(ValueError, match=r"ops compact_layer; shapes 8x16; providers compile"):
        bench(tmp_path, ops=("compact_layer",), providers=("compile",))
    monkeypatch.setattr(runner, "missing", lambda name, device: None)
    with pytest.raises(ValueError, match=r"ops gather_rows; shapes 8x16; providers triton"):
        bench(tmp_path, ops=("gather_rows",), providers=("triton",))
    assert not list(tmp_path.iterdir())


def test_torch_compile_alone_is_measured_too(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    result, _ = bench(tmp_path, ops=("gate_scores", "gather_rows"), providers=("compile",))
    found = {(row.op, row.variant) for row in result.rows if row.provider == "compile"}
    assert found == {("gate_scores", "sum of x dx"), ("gather_rows", "keep 0.5"), ("gather_rows", "keep 0.8")}


def test_whole_layers_are_measured_where_all_their_columns_come_in_fours():
    layer = BY_TITLE["nm_mask: 2:4 of one whole layer"]
    fits = {name: runner._fits(layer, parse_shapes(name).layer[0]) for name in ("8x16", "8x10", "10x8")}
    assert fits == {"8x16": True, "8x10": False, "10x8": False}


def test_the_sums_over_weights_are_measured_first():
    assert CASES[0] is BY_TITLE["weight_scores: |W|"]


def test_a_run_keeps_its_rows_and_replaces_them(tmp_path):
    options = {"ops": ("gate_scores", "select_mask"), "threads": (1, 2)}
    before = torch.get_num_threads()
    result, told = bench(tmp_path, FakeTimer(1e-3), **options)
    assert result.exit_code == 0
    lines = read(tmp_path / "ops.csv")
    assert len(lines) == len(result.rows) == 2 * (3 + 5)
    assert {line["op"] for line in lines} == {"gate_scores", "select_mask"}
    assert {(line["shape"], line["dtype"], line["on"], line["theme"]) for line in lines} == {
        ("8x16", "bf16", "cpu", "ops")
    }
    assert {line["threads"] for line in lines} == {"1", "2"}
    assert {line["provider"] for line in lines} == {"reference", "kthvalue", "read", "copy"}
    assert "select_mask: Wanda 50%, each row  8x16 bf16" in told
    assert torch.get_num_threads() == before
    bench(tmp_path, FakeTimer(2e-3), **options)
    again = read(tmp_path / "ops.csv")
    assert len(again) == len(lines)
    assert {line["median"] for line in again if line["quantity"] == "time"} == {"0.002"}


def test_rates_come_from_the_bytes_that_must_move(tmp_path):
    result, _ = bench(tmp_path, FakeTimer(1e-3), ops=("masked_copy",))
    found = {(row.provider, row.quantity): row.median for row in result.rows}
    assert found["reference", "rate"] == pytest.approx(5 * 8 * 16 / 1e-3 / 1e9)
    assert found["copy", "rate"] == pytest.approx(2 * 1024 / 1e-3 / 1e9)
    assert ("reference", "share") not in found  # so little stays in the cache


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    class Interrupted(FakeTimer):
        def sample(self, call, estimate: float) -> float:
            if self.calls == 30:
                raise KeyboardInterrupt
            return super().sample(call, estimate)

    result, told = bench(tmp_path, Interrupted())
    assert result.exit_code == 130
    assert "interrupted" in told
    assert len(read(tmp_path / "ops.csv")) == len(result.rows) > 0


def test_options_refuse_what_is_unknown():
    with pytest.raises(ValueError, match=r"unknown op 'weight_score'; did you mean weight_scores"):
        BenchOptions(ops=("weight_score",))
    with pytest.raises(ValueError, match=r"unknown provider 'tritn'; did you mean triton"):
        BenchOptions(providers=("tritn",))
    with pytest.raises(ValueError, match=r"shapes 'llama'"):
        BenchOptions(shapes=("llama",))
    with pytest.raises(ValueError, match=r"rounds is 0"):
        BenchOptions(rounds=0)
    for device in ("warp", "meta", "cuda:", "cpu:1"):
        with pytest.raises(ValueError, match=rf"device '{device}'; expected cpu, cuda or cuda:N"):
            BenchOptions(device=device)
    with pytest.raises(ValueError, match=r"device 'cuda:99'; expected cpu"):
        BenchOptions(device="cuda:99")
    with pytest.raises(ValueError, match=r"threads 'two'"):
        BenchOptions.parse(threads="two")
    assert BenchOptions.parse(ops="nm_mask, nm_apply", threads="1,2", dtype=None).ops == ("nm_mask", "nm_apply")
    with pytest.raises(RuntimeError, match=r"provider 'cuda' cannot run here: it has no kernels for cpu"):
        runner.run(BenchOptions(providers=("cuda",)))


def test_shapes():
    assert parse_shapes("llama-7b").weight[-1] == Matrix(4096, 11008)
    assert sum(rows * columns for rows, columns in LLAMA_7B.weights) * 32 * 2 == pytest.approx(12.95e9, rel=1e-3)
    assert parse_shapes("6x9").layer[0].weights[-1] == (6, 9)


def test_rounds_fit_a_budget_and_the_quick_take_more():
    assert timing.plan_rounds({"slow": 4.0, "quick": 0.1}, 7, 15.0) == {"slow": 3, "quick": 7}
    assert timing.plan_rounds({"slow": 40.0, "quick": 0.1}, 7, 15.0) == {"slow": 1, "quick": 1}
    assert timing.plan_rounds({"a": 1e-6}, 5, 1.0) == {"a": 5}


def test_a_short_call_is_repeated_for_a_sample(monkeypatch):
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    assert timing.CpuTimer().sample(lambda: calls.append(1), 0.005) == pytest.approx(0.5 / 4)
    assert len(calls) == 4
    timing.CpuTimer().sample(lambda: calls.append(1), float("inf"))
    assert len(calls) == 5
