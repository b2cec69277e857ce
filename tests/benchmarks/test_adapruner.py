"""The search's benchmark on a tiny model: cells that are kept, and a table that says what was measured."""

import json
import math

import pytest

pytest.importorskip("optuna")

from transformers import PreTrainedTokenizerFast

import pruneengine as pe
from benchmarks.adapruner.cells import Bench, Cell
from benchmarks.adapruner.plans import winning_plan, write_plans
from benchmarks.adapruner.report import COLUMNS, csv_lines, json_lines, summary, table
from tests.helpers.tiny import tiny_model


@pytest.fixture
def bench(folder, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    for name in ("search", "report"):
        (folder / f"{name}.txt").write_text("\n\n".join(f"{name} {i * i % 97} and {i * 31 % 53}" for i in range(200)))
    config = pe.AdaPrunerConfig(
        trials=3, pool=6, counts=(3,), lengths=(16,), seqlen=24, windows=4, held_out=3, round_to=1,
        calibration=str(folder / "text.txt"), search_text=str(folder / "search.txt"),
    )  # fmt: skip
    windows = pe.evaluation_windows(str(folder / "report.txt"), tokenizer, 32, 3)
    return Bench(tiny_model(vocab_size=256), tokenizer, config, windows, tmp_path, ("energy",))


def test_cells_are_measured_once_and_shown(bench, monkeypatch):
    cells = [Cell(0.4, "per-layer", seed, sampler) for seed, sampler in ((0, "tpe"), (1, "tpe"), (0, "random"))]
    for cell in cells:
        assert bench.result(cell) is None
        bench.measure(cell)
    results = {cell: bench.result(cell) for cell in cells}
    assert len(results[cells[0]]["search"]["baselines"]) == 24
    assert len(results[cells[1]]["search"]["baselines"]) == 3
    lines, columns = csv_lines(results, bench.dense(), {"device": "here", "threads": "1", "versions": "", "date": ""})
    assert columns == COLUMNS
    found = {(line["seed"], line["what"]): line for line in lines}
    assert (0, "random search") in found
    for seed in (0, 1):
        fixed = [row["value"] for row in results[cells[seed]]["search"]["baselines"] if row["value"] is not None]
        best = results[cells[seed]]["search"]["best"]["value"]
        assert best <= min(fixed)
        ours = found[seed, "adapruner"]
        assert ours["search"] == pytest.approx(found[seed, "dense"]["search"] * math.exp(best))
        assert ours["report"] is not None
        assert ours["trials"] == 3
    kept = summary(results)
    text = json_lines(kept)
    assert json.loads(text) == kept
    assert "blocks" not in text
    trials = results[cells[0]]["search"]["trials"]
    assert [trial["value"] for trial in kept[str(cells[0])]["trials"]] == [trial["value"] for trial in trials]
    assert max(len(search["trials"]) for search in kept.values()) < len(text.splitlines()) < 150
    text = table(results, bench.dense())
    assert "40%, per-layer, median of seeds" in text
    assert "| adapruner | " in text
    monkeypatch.setattr("benchmarks.adapruner.cells.perplexity", None)
    assert bench.dense() == bench.dense()


def test_winning_plans_are_decided_again_as_they_were_measured(bench, tmp_path):
    cells = [Cell(0.4, "per-layer", 0, "tpe"), Cell(0.4, "per-layer", 0, "random"), Cell(0.3, "per-layer", 0, "tpe")]
    found = bench.measure(cells[0])
    bench.measure(cells[1])
    measured = sorted(bench.work.glob("perplexity-*.json"))
    (path,) = write_plans(bench, cells, tmp_path / "plans")
    assert path.name == "adapruner-per-layer-0.4-0.json"
    plan = pe.Plan.load(path)
    assert (plan.reached, plan.shape, plan.asked) == (found["search"]["reached"], "per-layer", 0.4)
    # The plan is part of a measurement's name: were it another, there would be one more.
    plain = found["report"].get("winner, not compensated", found["report"]["winner"])
    assert bench._perplexity("again", plan, {})["perplexity"] == plain["perplexity"]
    assert sorted(bench.work.glob("perplexity-*.json")) == measured

    fixed = next(b for b in found["search"]["baselines"] if b["value"] is not None)
    search = found["search"] | {"best": {"number": None, "name": fixed["name"]}, "reached": fixed["reached"]}
    assert winning_plan(bench, bench.configured(cells[0]), search).reached == fixed["reached"]
    with pytest.raises(ValueError, match=r"its cell says 0\.123"):
        winning_plan(bench, bench.configured(cells[0]), found["search"] | {"reached": 0.123})
    for pool in bench.work.glob("pool-*.safetensors"):
        pool.unlink()
    with pytest.raises(FileNotFoundError, match="not collected there"):
        write_plans(bench, cells, tmp_path / "plans")
