"""The HyWIA study on a tiny model: what it keeps, what it repeats, what it writes."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.hywia.cells import DENSE, METHODS, SHAPES, Cell, Study, cells
from benchmarks.hywia.report import blend_table, plot, tables, write_csv
from benchmarks.hywia.run import fusion_times, run
from pruneengine.data.samples import as_samples
from tests.helpers.tiny import tiny_model, tiny_tokens


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    samples = {seed: as_samples(tiny_tokens(6, seed=seed)) for seed in (0, 1)}
    cache = tmp_path_factory.mktemp("cells")
    return Study(tiny_model(), samples, as_samples(tiny_tokens(3, 24, seed=9)), cache, held_out=2, steps=2, round_to=1)


def test_every_cell_is_measured_once(study, capsys):
    chosen = cells((0, 1), (0.4,), ("uniform",), METHODS)
    assert chosen[0] == Cell(DENSE)
    assert len({study.path(cell) for cell in chosen}) == len(chosen) == 23
    run(study, chosen)
    assert "0 of 23 cells are here, 23 to measure" in capsys.readouterr().out
    kept = {path: path.read_text() for path in study.cache.iterdir() if path.suffix == ".json"}
    run(study, chosen)
    assert "23 of 23 cells are here, 0 to measure" in capsys.readouterr().out
    assert kept == {path: path.read_text() for path in study.cache.iterdir() if path.suffix == ".json"}
    found = study.result(Cell("hywia c", 0.4, "uniform", 1))
    assert found["fit"]["checks"].keys() == {"0", "2"}
    assert [row["group"] for row in found["blends"]] == [g.name for g in study.structure.groups]


def test_a_cell_is_remade_when_what_made_it_changes(study):
    cell = Cell("hywia c", 0.4, "uniform")
    more = Study(study.model, study.samples, study.windows, study.cache, held_out=2, steps=3, round_to=1)
    assert more.path(cell) != study.path(cell)
    assert more.path(Cell("vectorize", 0.4, "uniform")) == study.path(Cell("vectorize", 0.4, "uniform"))
    other = Study(study.model, study.samples, as_samples(tiny_tokens(3, 24)), study.cache, held_out=2, round_to=1)
    assert other.path(Cell(DENSE)) != study.path(Cell(DENSE))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_a_plan_of_its_own(study, shape):
    found = study.measure(Cell("hywia a", 0.4, shape))
    assert abs(found["reached"] - 0.4) < 0.02


def test_the_report_shows_what_was_measured(study, tmp_path):
    chosen = cells((0, 1), (0.4,), ("uniform",), METHODS)
    run(study, chosen)
    results = {cell: study.result(cell) for cell in chosen}
    write_csv(tmp_path / "hywia.csv", results, {"device": "here"})
    lines = (tmp_path / "hywia.csv").read_text().splitlines()
    assert len(lines) == 24
    assert lines[1].startswith("dense,0,,0,0,")
    text = tables(results)
    assert "40% uniform" in text
    assert all(f"\n{method}" in text for method in METHODS)
    del results[Cell("blend 0.5", 0.4, "uniform", 1)]
    assert "\nblend 0.5" in tables(results)
    assert "layers.2.mlp" in blend_table(results, 0.4, "uniform")
    assert blend_table(results, 0.9, "uniform") == "no blend was measured at 90% uniform"
    assert [line.split(":")[0] in ("met", "MISSED") for line in fusion_times(study, 0)] == [True] * 3


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_plot_is_drawn(study, tmp_path):
    chosen = cells((0, 1), (0.4,), ("uniform",), METHODS)
    run(study, chosen)
    path: Path = tmp_path / "pictures" / "blend.png"
    assert plot(path, {cell: study.result(cell) for cell in chosen}, (0.4,), "uniform", "tiny")
    assert path.stat().st_size > 10_000
