"""The sparse study on a tiny model: what it keeps, what it repeats, what it writes."""

import pytest
import torch

from benchmarks.sparse import cells as sparse_cells
from benchmarks.sparse.cells import DENSE, HEADLINE, OURS, ROWS, Cell, Study, cells, columns, counted
from benchmarks.sparse.report import markdown, paired, write_csv
from benchmarks.sparse.run import arguments, read_functions, run
from pruneengine.data.samples import as_samples
from pruneengine.sparse.config import SparseConfig
from pruneengine.sparse.prune import sparsify
from tests.helpers.tiny import tiny_model, tiny_tokens

WANTED = columns(("wanda", "magnitude"), (0.6, 0.5))
SETTING = dict.fromkeys(("model", "mode", "samples", "seqlen", "calibration", "device", "threads", "versions"), "x")
SETTING |= {"date": "today", "window": "24"}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    samples = {seed: as_samples(tiny_tokens(6, seed=seed)) for seed in (0, 1)}
    cache = tmp_path_factory.mktemp("cells")
    return Study(tiny_model(), samples, as_samples(tiny_tokens(5, 24, seed=9)), 3, cache)


@pytest.fixture(scope="module")
def chosen() -> list[Cell]:
    return cells(WANTED, ("uniform", "owl"), (0, 1), {}, ["uniform"])


@pytest.fixture(scope="module")
def results(study, chosen):
    assert run(study, chosen, chosen) == {}
    return {cell: study.result(cell) for cell in chosen}


def test_the_order_gives_whole_comparisons_first():
    functions = {("wanda", 0.6): None}
    found = cells(WANTED, ROWS, (0, 1), functions)
    assert found[0] == Cell(DENSE)
    assert [cell.row for cell in found[1:5]] == list(HEADLINE)
    assert {(cell.method, cell.sparsity) for cell in found[1:5]} == {("wanda", 0.6)}
    assert [cell for cell in found if cell.row == OURS] == [Cell(OURS, "wanda", 0.6, seed) for seed in (0, 1)]
    rest = next(place for place, cell in enumerate(found) if cell.row == "global")
    assert {cell.row for cell in found[1:rest]} == set(HEADLINE)
    assert {(cell.method, cell.sparsity) for cell in found[1:rest]} == set(WANTED)
    assert [cell.seed for cell in found[1:]] == sorted(cell.seed for cell in found[1:])


def test_wanda_takes_every_sparsity_and_the_others_the_first():
    assert WANTED == [("wanda", 0.6), ("wanda", 0.5), ("magnitude", 0.6)]


def test_every_cell_is_measured_once_and_leaves_the_model_dense(study, chosen, results, capsys):
    assert len({study.path(cell) for cell in chosen}) == len(chosen) == 1 + 2 * 6 + 1 + 2 * 3
    kept = {path: path.read_bytes() for path in study.cache.iterdir()}
    dense = tiny_model().state_dict()
    assert all(torch.equal(value, dense[name]) for name, value in study.model.state_dict().items())
    assert len([path for path in kept if path.suffix == ".safetensors"]) == 2
    run(study, chosen, [cell for cell in chosen if study.result(cell) is None])
    assert kept == {path: path.read_bytes() for path in study.cache.iterdir()}
    found = results[Cell("owl", "wanda", 0.6, 1)]
    assert found["reached"] == pytest.approx(0.6, abs=1e-4)
    assert found["exact"] == found["matrices"] == 21


def test_the_first_windows_are_the_first_of_all(results):
    part, whole = (results[Cell("uniform", "wanda", 0.6, full=full)]["per window"] for full in (False, True))
    assert (len(part), len(whole)) == (3, 5)
    assert part == pytest.approx(whole[:3], rel=1e-5)


def test_a_cell_is_remade_when_what_made_it_changes(study, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, text in zip(files, ("one", "two"), strict=True):
        file.write_text(text)
    ours = Cell(OURS, "wanda", 0.6)

    def path(**changes):
        given = {"functions": {("wanda", 0.6): files[0]}} | changes
        return Study(study.model, study.samples, study.windows, given.pop("first", 3), study.cache, **given).path(ours)

    first = path()
    assert path(functions={("wanda", 0.6): files[1]}) != first
    assert path(options={"mode": "two-pass"}) != first
    assert path(first=2) != first
    files[1].write_text("one")
    assert path(functions={("wanda", 0.6): files[1]}) == first


def test_a_cell_that_fails_does_not_stop_the_others(study, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no such\nallocation")

    monkeypatch.setattr(sparse_cells, "sparsify", refuse)
    other = Study(study.model, study.samples, study.windows, 2, tmp_path)
    some = [Cell("uniform", "wanda", 0.6), Cell(DENSE)]
    assert run(other, some, some) == {some[0]: "no such allocation"}
    assert other.result(some[0]) is None
    assert other.result(some[1])["tokens"] == 2 * 23


def test_functions_go_to_their_columns(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for file in (a, b):
        file.touch()
    assert read_functions([f"wanda@0.6={a}", f"0.6={b}", f"0.5={a}"], WANTED) == {
        ("wanda", 0.6): a, ("magnitude", 0.6): b, ("wanda", 0.5): a,
    }  # fmt: skip
    for text, problem in (
        ("0.9=x", "no column"), (f"sparsegpt@0.6={a}", "no column"), ("0.6=x", "no file"), ("0.6", "expected"),
        (f"half={a}", "expected"), (f"@0.6={a}", "expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            read_functions([text], WANTED)


def test_bad_options_are_refused(capsys):
    for given, problem in ((("--nsamples", "0"), "--nsamples"), (("--sparsities", "60"), "--sparsities")):
        with pytest.raises(SystemExit):
            arguments(given)
        assert problem in capsys.readouterr().err


def test_the_report_shows_what_was_measured(results, tmp_path):
    made = dict(results)
    for seed in (0, 1):
        better = dict(results[Cell("uniform", "wanda", 0.6, seed)])
        better["per window"] = [loss - 0.5 for loss in better["per window"]]
        better |= {"nll": better["nll"] - 0.5, "perplexity": 1.0 + seed}
        made[Cell(OURS, "wanda", 0.6, seed)] = better
    write_csv(tmp_path / "sparse.csv", made, {("wanda", 0.6): "found.json"}, SETTING)
    lines = (tmp_path / "sparse.csv").read_text().splitlines()
    assert len(lines) == len(made) + 1
    assert sum("found.json" in line for line in lines) == 2
    text = markdown(made, {("wanda", 0.6): "found.json"}, SETTING)
    assert "| allocation | wanda 50% | wanda 60% | magnitude 60% |" in text
    assert "**1.50** (1.00, 2.00)" in text
    assert "- wanda at 60%: met: ours is lowest; -" in text
    assert "all 5 windows of 24 tokens" in text
    made[Cell(OURS, "wanda", 0.6, 0)] = made[Cell(OURS, "wanda", 0.6, 1)] = better | {"nll": 99.0}
    assert "MISSED: ours is not lowest" in markdown(made, {}, SETTING)


def test_differences_are_paired_over_windows():
    a, b = {"per window": [1.0, 3.0]}, {"per window": [0.0, 0.0]}
    assert paired([a], [b]) == (2.0, 1.0)


def test_zeros_are_counted_on_the_weights(study):
    model = tiny_model()
    plan = sparsify(model, tiny_tokens(4), SparseConfig("magnitude", 0.5)).plan
    name = next(iter(plan.removed))
    model.get_submodule(name).weight.data.fill_(1.0)
    found = counted(model, plan)
    assert found["exact"] == found["matrices"] - 1
    assert found["reached"] < found["planned"] == pytest.approx(0.5, abs=1e-4)
