"""Results as a file, and side by side."""

import dataclasses
import json
import math
import statistics

import pytest
import torch

from pruneengine import PruneConfig, find_groups, perplexity, prune
from pruneengine.cli.compare import _text
from pruneengine.evaluation.comparison import compare
from pruneengine.evaluation.perplexity import kv_cache_bytes
from pruneengine.evaluation.results import SCHEMA, Beside, ModelFacts, Results, TextResult, read_results
from pruneengine.evaluation.speed import SpeedResult
from pruneengine.evaluation.zero_shot import Metric, TaskResult
from tests.helpers.tiny import tiny_model, tiny_tokens

SPEED = SpeedResult(100.0, 10.0, 128, 32, 3, "float32", "cpu")


def text(nll, samples="windows", dtype="float32"):
    mean = statistics.mean(nll)
    return TextResult("wiki", 8, len(nll), math.exp(mean), mean, 7 * len(nll), tuple(nll), dtype, 1.0, samples)


def task(name, right, **changes):
    error = statistics.stdev(right) / math.sqrt(len(right))
    metric = Metric(statistics.mean(right), error, tuple(map(float, right)))
    found = TaskResult(name, "1.0", len(right), 99, len(right), 0, 0, "same", {"acc": metric}, "0.4.13", "float32", 1.0)
    return dataclasses.replace(found, **changes)


def results(*measured, fingerprint="a", parameters=100, **more):
    facts = ModelFacts("model", fingerprint, parameters, 4 * parameters, 48, "float32")
    found = Results(facts, **more)
    for one in measured:
        found = found.with_text(one) if isinstance(one, TextResult) else found.with_task(one)
    return found


def row(rows, name):
    return next(r for r in rows if r.name.startswith(name))


def test_a_model_is_described_by_its_own_widths():
    model = tiny_model("llama-gqa-tied")
    facts = ModelFacts.of(model, "here")
    # 3 layers x 3 key-value heads of 12, keys and values, 4 bytes each.
    assert facts.kv_bytes_per_token == 3 * 3 * 12 * 2 * 4
    assert facts.weight_bytes == 4 * facts.parameters == 4 * sum(p.numel() for p in model.parameters())
    config = PruneConfig(
        method="magnitude_l1", ratio=0.3, structure="heads", allocation="global", shape="per-layer", round_to=1
    )
    structure, plan = find_groups(model), prune(model, None, config).plan
    kept = sum(layer.self_attn.k_proj.out_features for layer in model.model.layers)
    assert kept < 3 * 36
    assert kv_cache_bytes(find_groups(model), 2) == kv_cache_bytes(structure, 2, plan) == 2 * 2 * kept
    assert ModelFacts.of(model, "here").fingerprint != facts.fingerprint


def test_results_come_back_from_their_file(tmp_path):
    model = tiny_model()
    measured = TextResult.of("wiki", 16, perplexity(model, tiny_tokens(3)))
    beside = Beside(ModelFacts.of(model, "dense"), SPEED)
    found = results(measured, task("piqa", [0, 1, 1]), speed=SPEED, dense=beside, versions={"torch": torch.__version__})
    found.write(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == SCHEMA
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == found
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_numbers_that_are_not_finite_are_null_in_the_file_and_come_back(tmp_path):
    odd = Metric(math.nan, math.inf, (1.0, math.nan)), Metric(2.0, None, None)
    found = results(dataclasses.replace(task("piqa", [0, 1]), metrics=dict(zip("ab", odd, strict=True))))
    found.write(tmp_path / "results.json")

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    metrics = read_results(tmp_path).tasks["piqa"].metrics
    assert math.isnan(metrics["a"].value)
    assert metrics["a"].standard_error is None
    assert metrics["a"].per_item[0] == 1.0
    assert math.isnan(metrics["a"].per_item[1])
    assert metrics["b"] == odd[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema="other/2"), "schema 'other/2', expected 'pruneengine.results/1'"),
        (lambda v: v["model"].pop("parameters"), "model: field 'parameters' is missing"),
        (lambda v: v["texts"]["wiki, 2 windows of 8"].update(colour=1), "texts: wiki.*field 'colour' is unknown"),
        (lambda v: v["texts"]["wiki, 2 windows of 8"].update(nll="low"), "field 'nll' is 'low', expected float"),
        (lambda v: v["tasks"].update(piqa=3), "tasks: piqa: int, expected an object"),
        (lambda v: v["tasks"]["piqa"]["metrics"]["acc"].pop("value"), "piqa: acc: field 'value' is missing"),
        (lambda v: v.update(texts=[]), r"field 'texts' is \[\], expected"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(change, message):
    values = json.loads(results(text([1.0, 2.0]), task("piqa", [0, 1])).to_json())
    change(values)
    with pytest.raises(ValueError, match=message):
        Results.from_json(json.dumps(values), "file")


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results at"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="schema None"):
        read_results(tmp_path)


def test_earlier_results_stay_unless_the_model_changed():
    earlier = results(text([1.0, 2.0]), task("piqa", [0, 1]), speed=SPEED)
    now = results(task("piqa", [1, 1]), task("boolq", [0, 1]))
    both = now.after(earlier)
    assert list(both.tasks) == ["piqa", "boolq"]
    assert both.tasks["piqa"].metrics["acc"].value == 1.0
    assert (both.texts, both.speed) == (earlier.texts, SPEED)
    other = results(task("boolq", [0, 1]), fingerprint="b")
    assert other.after(earlier) == other


def test_differences_are_paired_by_window_and_item():
    first = results(text([1.0, 2.0, 6.0]), task("piqa", [0, 1, 1, 0]))
    other = results(text([1.5, 2.4, 6.6]), task("piqa", [0, 1, 0, 0]), parameters=80)
    rows = compare([first, other])
    assert row(rows, "parameters").cells[1].difference == pytest.approx(-0.2)
    loss = row(rows, "perplexity, wiki").cells[1]
    assert loss.value == pytest.approx(math.exp(3.5))
    assert (loss.difference, loss.paired) == (pytest.approx(0.5), True)
    assert loss.difference_error == pytest.approx(0.1 / math.sqrt(3))
    accuracy = row(rows, "piqa, acc").cells[1]
    assert accuracy.difference == pytest.approx(-0.25)
    # One item of four differs: far less than independent errors would say.
    assert accuracy.difference_error == pytest.approx(0.25)
    assert accuracy.standard_error == pytest.approx(0.25)
    assert row(rows, "piqa, acc").cells[0].difference is None


def test_without_items_the_errors_are_independent():
    bare = task("piqa", [0, 1, 1, 0])
    bare = dataclasses.replace(bare, metrics={"acc": Metric(0.5, 0.3)})
    cell = row(compare([results(bare), results(task("piqa", [0, 0, 1, 0]))]), "piqa").cells[1]
    assert (cell.difference, cell.paired) == (pytest.approx(-0.25), False)
    assert cell.difference_error == pytest.approx(math.hypot(0.3, 0.25))


def test_items_whose_mean_is_not_the_value_are_not_paired():
    """lm-eval's perplexity is exp(-mean) of log-likelihoods: their difference has the other sign."""

    def lambada(*logs, error):
        items = Metric(math.exp(-statistics.mean(logs)), error, logs)
        return results(task("lambada", [0, 1, 1], metrics={"perplexity": items}))

    better, worse = lambada(-1.0, -2.0, -3.0, error=2.0), lambada(-2.0, -3.0, -4.0, error=3.0)
    found = row(compare([better, worse]), "lambada, perplexity")
    assert found.kind == "score"
    assert found.cells[1].difference == pytest.approx(math.exp(3) - math.exp(2))
    assert found.cells[1].difference_error == pytest.approx(math.hypot(2.0, 3.0))
    assert not found.cells[1].paired
    assert _text(found, found.cells[1]) == "20.086 ± 3\n+12.696 ± 3.61 i"


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"limit": 9, "questions": "more"}, "limit 9, not 4"),
        ({"version": "2.0"}, "version 2.0, not 1.0"),
        ({"shots": 5}, "shots 5, not 0"),
        ({"questions": "others"}, "other questions"),
    ],
)
def test_what_is_not_the_same_is_marked_and_not_subtracted(changes, note):
    one, two = task("piqa", [0, 1, 1, 0]), task("boolq", [0, 1, 1, 0])
    rows = compare([results(one, two), results(task("piqa", [0, 1, 0, 0], **changes), two)])
    cell = row(rows, "piqa").cells[1]
    assert (cell.value, cell.difference, cell.note) == (0.25, None, note)
    assert row(rows, "boolq").cells[1].difference == 0.0
    mean = row(rows, "mean of 2 tasks").cells[1]
    assert (mean.difference, mean.note) == (None, note)


def test_another_dtype_or_lm_eval_is_noted_beside_the_difference():
    first = results(text([1.0, 2.0]), task("piqa", [0, 1]), task("boolq", [0, 1]))
    other = task("piqa", [1, 1], dtype="bfloat16", lm_eval="0.5.0"), task("boolq", [1, 1], dtype="bfloat16")
    rows = compare([first, results(text([1.0, 2.5], dtype="bfloat16"), *other)])
    notes = {name: row(rows, name).cells[1].note for name in ("perplexity", "piqa", "boolq", "mean")}
    both = "lm-eval 0.4.13 and 0.5.0; float32 and bfloat16"
    assert notes == {
        "perplexity": "float32 and bfloat16",
        "piqa": both,
        "boolq": "float32 and bfloat16",
        "mean": both,
    }
    assert row(rows, "mean").cells[1].difference == 0.5


def test_the_same_questions_under_another_limit_compare():
    rows = compare([results(task("piqa", [0, 1])), results(task("piqa", [1, 1], limit=None))])
    assert row(rows, "piqa").cells[1].difference == 0.5


def test_other_windows_are_not_subtracted():
    rows = compare([results(text([1.0, 2.0])), results(text([1.0, 3.0], samples="others")), results()])
    cells = row(rows, "perplexity").cells
    assert (cells[1].difference, cells[1].note) == (None, "other text or tokenizer")
    assert cells[2].value is None


def test_other_windows_of_a_text_are_another_measurement():
    short, long = text([1.0, 2.0]), text([1.0, 2.0, 3.0], samples="more")
    kept = results(long).after(results(short))
    assert {found.windows for found in kept.texts.values()} == {2, 3}
    rows = compare([results(short), kept])
    assert row(rows, "perplexity, wiki, 2 windows of 8").cells[1].difference == 0.0
    assert row(rows, "perplexity, wiki, 3 windows of 8").cells[0].value is None


def test_texts_of_an_older_file_compare_with_those_of_a_newer_one():
    values = json.loads(results(text([1.0, 2.0])).to_json())
    values["texts"] = {"wiki, windows of 8": next(iter(values["texts"].values()))}
    older = Results.from_json(json.dumps(values))
    assert row(compare([older, results(text([1.0, 2.5]))]), "perplexity").cells[1].difference == 0.25


def test_the_mean_is_over_tasks_that_all_have():
    first = results(task("piqa", [0, 1]), task("boolq", [0, 1]), task("winogrande", [1, 1]))
    other = results(task("boolq", [1, 1]), task("piqa", [1, 1]))
    mean = row(compare([first, other]), "mean of 2 tasks").cells
    assert [cell.value for cell in mean] == [0.5, 1.0]
    assert (mean[1].difference, mean[1].paired) == (0.5, True)
    assert mean[1].difference_error == pytest.approx(math.hypot(0.5, 0.5) / 2)
    assert not [r for r in compare([first, results(task("piqa", [1, 1]))]) if r.name.startswith("mean")]


def test_speeds_are_divided_by_the_model_beside():
    faster = dataclasses.replace(SPEED, prefill=150.0)
    beside = Beside(ModelFacts("dense", "d", 1, 4, 4, "float32"), SPEED)
    elsewhere = dataclasses.replace(SPEED, device="cuda")
    rows = compare([results(speed=SPEED), results(speed=faster, dense=beside), results(speed=elsewhere), results()])
    assert [cell.difference for cell in row(rows, "prefill, tokens").cells] == [None, pytest.approx(0.5), None, None]
    assert row(rows, "prefill, tokens").cells[2].note == "other device, dtype or lengths"
    assert [cell.value for cell in row(rows, "prefill, times").cells] == [None, 1.5, None, None]


def test_sizes_are_divided_by_the_model_beside():
    beside = Beside(ModelFacts("dense", "d", 200, 800, 64, "float32"), SPEED)
    rows = compare([results(parameters=100, speed=SPEED, dense=beside), results()])
    ratios = {name: row(rows, f"{name}, times").cells for name in ("parameters", "weights", "KV cache")}
    assert {name: cells[0].value for name, cells in ratios.items()} == {
        "parameters": 0.5,
        "weights": 0.5,
        "KV cache": 0.75,
    }
    assert all(cells[1].value is None for cells in ratios.values())


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])
