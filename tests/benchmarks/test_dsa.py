"""The benchmark of the search for allocation functions on a tiny model: what it keeps, what it repeats and writes."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

pytest.importorskip("optuna")
pytest.importorskip("scipy")

from benchmarks.dsa import cells as dsa_cells
from benchmarks.dsa import run as dsa
from benchmarks.dsa.cells import Bench, Cell
from pruneengine.common.progress import set_progress
from pruneengine.search.dsa.config import DsaConfig
from pruneengine.sparse.functions.function import Function, is_function_file, read_metadata
from tests.helpers.tiny import tiny_model

SIZES = {"window": 24, "windows": 10, "nsamples": 4, "seqlen": 16, "trials": 5, "threads": torch.get_num_threads()}
EVOLVED, DRAWN = (Cell("wanda", 0.5, sampler, 0) for sampler in ("evolution", "random"))


@pytest.fixture
def bench(texts, tmp_path):
    config = DsaConfig(
        sparsity=0.5, trials=4, plateau=None, population=3, finalists=2, correlate=6, windows=8, seqlen=24, nsamples=4,
        calibration_seqlen=16, calibration=str(texts / "text.txt"), search_text=str(texts / "search.txt"),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(texts / "model")
    return Bench(tiny_model(vocab_size=256), tokenizer, config, tmp_path)


def never(*_, **__):
    pytest.fail("searched again")


def started(root, capsys, monkeypatch, texts, *more):
    """The script's standard output, and the folder of its results."""
    spent = [f"--{name}={value}" for name, value in SIZES.items()]
    places = [f"--{name}={root / name}" for name in ("work", "results")]
    spoken = [f"--calibration={texts / 'text.txt'}", f"--search={texts / 'search.txt'}", f"--model={texts / 'model'}"]
    monkeypatch.setattr("sys.argv", ["run.py", "--sparsities", "0.5", *spent, *places, *spoken, *more])
    try:
        dsa.main()
    finally:
        set_progress(False)
    return capsys.readouterr().out, root / "results"


def lines_of(results):
    with (results / "dsa.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_cell_has_the_name_of_what_is_searched():
    assert str(EVOLVED) == "wanda-0.5-evolution-0"
    assert str(Cell("sparsegpt", 0.65, "random", 2)) == "sparsegpt-0.65-random-2"


def test_a_cell_is_configured_as_it_says(bench):
    for cell, correlate in ((EVOLVED, 6), (DRAWN, 0)):
        config = bench.configured(cell)
        assert (config.pruner, config.sparsity, config.sampler, config.seed) == ("wanda", 0.5, cell.sampler, 0)
        assert config.correlate == correlate
        assert config.trials == 4


def test_a_search_is_kept_with_its_study_and_not_done_again(bench, monkeypatch):
    assert bench.result(EVOLVED) is None
    found = bench.measure(EVOLVED)
    assert bench.result(EVOLVED) == json.loads(json.dumps(found))
    assert bench.result(DRAWN) is None
    assert {path.suffix for path in bench.work.glob("wanda-0.5-evolution-0-*")} >= {".json", ".journal"}
    assert found["counts"]["drawn"] == len(found["trials"]) == 4
    complete = [trial for trial in found["trials"] if trial["value"] is not None]
    assert found["history"][-1][1] == min(trial["value"] for trial in complete)
    assert [best for _, best in found["history"]] == sorted({best for _, best in found["history"]}, reverse=True)
    assert found["trials_seconds"] == pytest.approx(sum(sum(t["seconds"].values()) for t in found["trials"]))
    ours = next(row for row in found["finalists"] if row["name"].startswith("trial"))
    assert str(Function.from_dict(found["function"]["fields"])) == ours["function"]
    assert found["function"]["metadata"]["loss above dense"] == {"search": ours["value"], "held out": ours["held_out"]}
    # Another text, seed or budget is another search; a second bench on the same model finds what is kept.
    monkeypatch.setattr(dsa_cells, "search_dsa", never)
    again = Bench(bench.model, bench.tokenizer, bench.config, bench.work)
    assert again.result(EVOLVED) == bench.result(EVOLVED)
    for change in ({"trials": 5}, {"windows": 9}, {"stop": None}):
        assert replace(again, config=replace(bench.config, **change)).result(EVOLVED) is None
    assert Bench(tiny_model(seed=1, vocab_size=256), None, bench.config, bench.work).result(EVOLVED) is None


def test_the_script_lists_searches_writes_and_repeats_nothing(texts, tmp_path, capsys, monkeypatch):
    def start(*more):
        return started(tmp_path, capsys, monkeypatch, texts, *more)

    out, results = start("--list")
    assert out.splitlines() == [str(EVOLVED), str(DRAWN), "2 of 2 searches are missing"]
    out, _ = start("--known")
    assert out == ""
    assert not results.exists()

    out, _ = start("--samplers", "random")
    assert out.splitlines()[0] == str(DRAWN)
    assert start("--list")[0].splitlines() == [str(EVOLVED), "1 of 2 searches are missing"]
    (line,) = lines_of(results)
    assert (line["pruner"], line["sparsity"], line["sampler"], line["seed"]) == ("wanda", "0.5", "random", "0")
    assert int(line["drawn"]) == 5
    assert line["threads"] == str(SIZES["threads"])
    assert line["spearman"] == ""
    kept = json.loads((results / "dsa.json").read_text())[str(DRAWN)]
    assert "trials" not in kept
    fixed = {row["name"]: row["held_out"] for row in kept["finalists"]}
    for name in ("uniform", "owl", "dsa"):
        assert float(line[f"{name} held-out"]) == pytest.approx(fixed[name], rel=1e-5)
    assert float(line["full loss"]) == pytest.approx(kept["best"]["value"], rel=1e-5)
    assert line["winner"] == kept["best"]["name"]

    path = results / "functions" / f"{DRAWN}.json"
    assert is_function_file(path)
    assert str(Function.load(path)) in {row["function"] for row in kept["finalists"]}
    metadata = read_metadata(path)
    assert (metadata["pruner"], metadata["sparsity"]) == ("wanda", 0.5)
    assert metadata["name"].startswith("trial")

    written = {each: each.read_bytes() for each in results.rglob("*") if each.is_file()}
    monkeypatch.setattr(dsa_cells, "search_dsa", never)
    start("--known")
    start("--samplers", "random")
    assert {each: each.read_bytes() for each in results.rglob("*") if each.is_file()} == written


def test_results_of_other_searches_stay(tmp_path):
    def line(sampler, loss):
        return {"pruner": "wanda", "sparsity": 0.5, "sampler": sampler, "seed": 0, "full loss": loss}

    dsa.write(tmp_path, [line("random", 1.0), line("evolution", 2.0)], {"a": 1, "b": 2})
    dsa.write(tmp_path, [line("random", 3.0)], {"b": 3})
    assert [(row["sampler"], row["full loss"]) for row in lines_of(tmp_path)] == [("evolution", "2"), ("random", "3")]
    assert json.loads((tmp_path / "dsa.json").read_text()) == {"a": 1, "b": 3}


def test_texts_are_files_of_a_folder_or_as_named_or_from_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["run.py", "--data", str(tmp_path)])
    options = dsa.arguments()
    assert options.calibration == str(tmp_path / "c4" / "c4_demo.jsonl")
    assert options.search == str(tmp_path / "wikitext2" / "validation_docs.jsonl")
    monkeypatch.setattr("sys.argv", ["run.py", "--calibration", "mine.txt"])
    options = dsa.arguments()
    assert (options.calibration, options.search, options.plateau) == ("mine.txt", "wikitext2", 0)


def test_a_text_that_is_not_there_is_one_line(texts, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit, match=r"^dsa: .*absent\.txt"):
        started(tmp_path, capsys, monkeypatch, texts, "--search", str(tmp_path / "absent.txt"))
    assert not (tmp_path / "results").exists()
