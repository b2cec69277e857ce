"""The search's benchmark on a tiny model: cells that are kept, and a table that says what was measured."""

import math

import pytest

pytest.importorskip("optuna")

from transformers import PreTrainedTokenizerFast

import pruneengine as pe
from benchmarks.adapruner_cells import Bench, Cell
from benchmarks.adapruner_report import COLUMNS, csv_lines, table
from tests.test_cli import folder
from tests.tiny import tiny_model

__all__ = ["folder"]


@pytest.fixture
def bench(folder, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    for name in ("search", "report"):
        (folder / f"{name}.txt").write_text("\n\n".join(f"{name} {i * i % 97} and {i * 31 % 53}" for i in range(200)))
    config = pe.SearchConfig(
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
    text = table(results, bench.dense())
    assert "40%, per-layer, median of seeds" in text
    assert "| adapruner | " in text
    monkeypatch.setattr("benchmarks.adapruner_cells.perplexity", None)
    assert bench.dense() == bench.dense()
