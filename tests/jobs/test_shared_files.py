"""Files that several jobs read, change and write: nothing of another job's is lost."""

import multiprocessing
import time
from dataclasses import replace

import pytest

import pruneengine as pe
from pruneengine.common.files import locked
from pruneengine.evaluation.results import read_results
from pruneengine.jobs import evaluate
from pruneengine.jobs.statistics_file import keep_statistics
from tests.helpers.tiny import tiny_model, tiny_tokens


def add_lines(path, lines):
    for line in range(lines):
        with locked(path):
            text = path.read_text()
            time.sleep(0.001)
            path.write_text(f"{text}{line}\n")


def test_a_file_is_changed_by_one_process_at_a_time(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_lines, args=(path, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(path.read_text().splitlines()) == 60


def test_statistics_of_another_job_are_completed_and_not_replaced(tmp_path):
    path, tokens = tmp_path / "kept" / "s.safetensors", tiny_tokens()
    sums, squares = (pe.calibrate(tiny_model(), tokens, (quantity,)) for quantity in ("sum", "squares"))
    assert keep_statistics(sums, path) == (sums, ())
    both, warnings = keep_statistics(squares, path)
    assert (warnings, both.tensors.keys()) == ((), {"sum", "squares"})
    assert pe.Statistics.load(path).tensors.keys() == {"sum", "squares"}


@pytest.mark.parametrize("other", ["model", "text"])
def test_statistics_of_another_model_or_text_stay(tmp_path, other):
    path, tokens = tmp_path / "s.safetensors", tiny_tokens()
    theirs = pe.calibrate(tiny_model(seed=int(other == "model")), tokens[int(other == "text") :], ("sum",))
    theirs.save(path)
    ours = pe.calibrate(tiny_model(), tokens, ("squares",))
    kept, (warning,) = keep_statistics(ours, path)
    assert kept is ours
    assert "has come to hold the statistics of another model or text" in warning
    assert pe.Statistics.load(path).tensors.keys() == {"sum"}


def test_what_another_evaluation_found_meanwhile_is_kept(folder, tmp_path, monkeypatch):
    file, measure = tmp_path / "results.json", evaluate.perplexity
    options = evaluate.EvalOptions(str(folder / "model"), str(folder / "text.txt"), 32, 2, out=file)

    def while_another_finishes(model, windows, dtype=None):
        monkeypatch.setattr(evaluate, "perplexity", measure)
        evaluate.run(replace(options, seqlen=16))
        return measure(model, windows, dtype=dtype)

    monkeypatch.setattr(evaluate, "perplexity", while_another_finishes)
    evaluate.run(options)
    assert len(read_results(file).texts) == 2
