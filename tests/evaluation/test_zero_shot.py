"""Zero-shot accuracy on tasks small enough to count by hand."""

import json
import logging
import math
import sys
from pathlib import Path

import pytest
import torch

from pruneengine import PruneConfig, prune
from pruneengine.common.progress import set_progress
from pruneengine.evaluation import lm_eval_adapter as harness
from pruneengine.evaluation import zero_shot as zeroshot
from pruneengine.evaluation.zero_shot import MAIN, Metric, TaskResult, mean_accuracy, zero_shot
from tests.helpers.tiny import tiny_model
from tests.helpers.tiny_tasks import VOCABULARY, byte_tokenizer, write_perplexity_task, write_task

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
LOCAL = Path(__file__).parents[3] / "shared" / "data" / "lm_eval_tasks"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=VOCABULARY)


def by_hand(model, tokenizer, folder, limit):
    """Right or wrong of every item, by the log-likelihood of each choice, as it is and per character."""
    plain, normed = [], []
    for line in (folder / "piqa_tiny.jsonl").read_text().splitlines()[:limit]:
        item = json.loads(line)
        scores = []
        for choice in item["choices"]:
            context, whole = (tokenizer(t)["input_ids"] for t in (item["goal"], f"{item['goal']} {choice}"))
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(float(logs[i - 1, whole[i]]) for i in range(len(context), len(whole))))
        lengths = [len(choice) for choice in item["choices"]]
        plain.append(float(scores.index(max(scores)) == item["gold"]))
        per_length = [s / n for s, n in zip(scores, lengths, strict=True)]
        normed.append(float(per_length.index(max(per_length)) == item["gold"]))
    return plain, normed


@pytest.mark.parametrize("batch_size", [1, 3, "auto", "auto:2", "auto:500"])
def test_every_item_is_judged_as_by_hand(model, tasks, batch_size):
    tokenizer = byte_tokenizer()
    found = zero_shot(model, tokenizer, ["piqa_tiny"], include_path=tasks, limit=5, batch_size=batch_size)["piqa_tiny"]
    plain, normed = by_hand(model, tokenizer, tasks, 5)
    assert (list(found.metrics["acc"].per_item), list(found.metrics["acc_norm"].per_item)) == (plain, normed)
    assert found.metrics["acc"].value == sum(plain) / 5
    spread = torch.tensor(normed).std() / math.sqrt(5)
    assert found.metrics["acc_norm"].standard_error == pytest.approx(float(spread), abs=1e-6)
    assert (found.items, found.available, found.limit, found.version, found.shots) == (5, 7, 5, "1.0", 0)
    assert (found.main, found.dtype) == ("acc", "float32")
    assert tokenizer.pad_token is None


def test_widths_that_differ_by_layer_are_measured_too(tasks):
    pruned = tiny_model("llama-gqa-tied", vocab_size=VOCABULARY)
    config = PruneConfig(method="magnitude_l1", ratio=0.4, allocation="global", shape="per-layer", round_to=1)
    prune(pruned, None, config)
    widths = {layer.mlp.up_proj.out_features for layer in pruned.model.layers}
    assert len(widths) > 1
    found = zero_shot(pruned, byte_tokenizer(), ["piqa_tiny"], include_path=tasks)["piqa_tiny"]
    assert list(found.metrics["acc"].per_item) == by_hand(pruned, byte_tokenizer(), tasks, None)[0]


def test_an_unknown_task_is_answered_with_the_nearest(tasks, monkeypatch):
    import lm_eval.tasks

    # lm-eval's own index of thousands of files takes it many seconds to read.
    known = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: known(**given | {"include_defaults": False}))
    with pytest.raises(ValueError, match=r"unknown task 'piqa_tinny'; the nearest are piqa_tiny"):
        harness.find_tasks(["piqa_tiny", "piqa_tinny"], tasks)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": []}, ValueError, "none named"),
        ({"limit": 0}, ValueError, "limit=0"),
        ({"limit": 0.5}, ValueError, "limit=0.5"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": "auto:"}, ValueError, "batch_size='auto:'"),
        ({"include_path": "nowhere"}, FileNotFoundError, "'nowhere'"),
    ],
)
def test_bad_arguments_are_refused(model, tasks, options, error, message):
    given = {"tasks": ["piqa_tiny"], "include_path": tasks} | options
    with pytest.raises(error, match=message):
        zero_shot(model, byte_tokenizer(), given.pop("tasks"), **given)


def test_without_its_extra_the_error_names_it(tasks, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ImportError, match=r"pip install 'pruneengine\[eval\]'"):
        harness.find_tasks(["piqa_tiny"], tasks)


def test_missing_data_is_said_before_any_task_is_asked(model, tmp_path):
    write_task(tmp_path, "present")
    (write_task(tmp_path, "absent") / "absent.jsonl").unlink()
    asked = []
    with pytest.raises(OSError, match="task 'absent' cannot be loaded"):
        zero_shot(model, byte_tokenizer(), ["present", "absent"], include_path=tmp_path, done=asked.append)
    assert asked == []


def test_too_long_for_the_model(tasks):
    short = tiny_model(vocab_size=VOCABULARY, max_position_embeddings=30)
    found = zero_shot(short, byte_tokenizer(), ["piqa_tiny"], include_path=tasks, limit=3)["piqa_tiny"]
    # "Add 1 to 3." and " The sum of both is 4" are 32 tokens, the other choice of each item fits.
    assert found.truncated == 3
    shorter = tiny_model(vocab_size=VOCABULARY, max_position_embeddings=12)
    with pytest.raises(ValueError, match="an answer of 21 tokens; the model reads 12"):
        zero_shot(shorter, byte_tokenizer(), ["piqa_tiny"], include_path=tasks, limit=3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_with_nan_is_refused_as_by_perplexity(tasks, batch_size):
    ruined = tiny_model(vocab_size=VOCABULARY)
    with torch.no_grad():
        ruined.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    seen = []
    with pytest.raises(FloatingPointError, match=r"task piqa_tiny: the log-likelihood of answer 1 of 14 is nan"):
        zero_shot(ruined, byte_tokenizer(), ["piqa_tiny"], include_path=tasks, batch_size=batch_size, done=seen.append)
    assert seen == []


def test_an_error_while_items_are_summed_up_names_its_task(model, tasks, monkeypatch):
    import lm_eval

    def fail(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(lm_eval, "evaluate", fail)
    with pytest.raises(RuntimeError, match=r"task 'piqa_tiny' failed: ZeroDivisionError: division by zero"):
        zero_shot(model, byte_tokenizer(), ["piqa_tiny"], include_path=tasks)


def test_results_come_one_by_one(model, tasks, tmp_path):
    write_task(tmp_path, "one", 3)
    write_task(tmp_path, "two", 4)
    seen = []
    found = zero_shot(
        model, byte_tokenizer(), ["two", "one"], include_path=tmp_path, done=lambda r: seen.append(r.task)
    )
    assert seen == list(found) == ["two", "one"]


def test_nothing_of_the_process_is_changed(model, tasks, capfd):
    import datasets

    model.train()
    drawn = torch.manual_seed(3).get_state()
    level = logging.getLogger("lm_eval").level
    zero_shot(model, byte_tokenizer(), ["piqa_tiny"], include_path=tasks, limit=2)
    assert model.training
    model.eval()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert logging.getLogger("lm_eval").level == level
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_a_perplexity_of_items_is_told_from_a_mean_and_its_bootstrap_is_silent(model, tmp_path, capfd):
    folder = write_perplexity_task(tmp_path)
    found = zero_shot(model, byte_tokenizer(), ["lambada_tiny"], include_path=folder)["lambada_tiny"]
    metric = found.metrics["perplexity"]
    assert metric.value == pytest.approx(math.exp(-sum(metric.per_item) / found.items))
    assert metric.standard_error > 0
    assert (metric.is_mean, found.metrics["acc"].is_mean) == (False, True)
    assert capfd.readouterr() == ("", "")


def test_progress_names_the_task(model, tasks, capsys, monkeypatch):
    from pruneengine.common import progress

    monkeypatch.setattr(progress, "START_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    set_progress(True)
    try:
        zero_shot(model, byte_tokenizer(), ["piqa_tiny"], include_path=tasks, batch_size=2)
    finally:
        set_progress(False)
    assert "piqa_tiny  [" in capsys.readouterr().err


def result(task, **metrics):
    values = {name: Metric(*value) for name, value in metrics.items()}
    return TaskResult(task, "1", 4, 4, None, 0, 0, "q", values, "0", "float32", 1.0)


def test_the_mean_takes_what_the_papers_take():
    both = {"acc": (0.5, 0.1), "acc_norm": (0.25, 0.2)}
    mains = {name: result(name, **both).main for name in ("piqa", "arc_easy_local", "hellaswag", "openbookqa", "new")}
    assert mains == {
        "piqa": "acc", "arc_easy_local": "acc", "hellaswag": "acc_norm", "openbookqa": "acc_norm", "new": "acc_norm",
    }  # fmt: skip
    assert result("piqablabla", acc_norm=(1, 0), acc=(0, 0)).main == "acc_norm"
    assert result("boolq", acc=(0.5, 0.1)).main == "acc"
    assert result("wikitext", word_perplexity=(20.0, None)).main is None
    mean = mean_accuracy([result("piqa", **both), result("hellaswag", **both), result("wikitext")])
    assert mean.value == pytest.approx(0.375)
    assert mean.standard_error == pytest.approx(math.hypot(0.1, 0.2) / 2)
    with pytest.raises(ValueError, match="no mean accuracy"):
        mean_accuracy([result("wikitext")])


def test_the_choice_of_metrics_gives_llm_pruners_dense_average():
    """The seven published values that are acc and acc_norm by MAIN average to the row's own 63.25."""
    row = {
        "boolq": 73.18, "piqa": 78.35, "hellaswag": 72.99, "winogrande": 67.01, "arc_easy": 67.45,
        "arc_challenge": 41.38, "openbookqa": 42.40,
    }  # fmt: skip
    assert row.keys() == MAIN.keys()
    results = [result(task, **{MAIN[task]: (value, 0.0)}) for task, value in row.items()]
    assert mean_accuracy(results).value == pytest.approx(63.25, abs=0.005)


@pytest.mark.skipif(not LOCAL.is_dir(), reason="the shared task files are not here")
def test_a_real_task_file_is_read():
    model = tiny_model(vocab_size=VOCABULARY, max_position_embeddings=2048)
    found = zero_shot(model, byte_tokenizer(), ["piqa_local"], include_path=LOCAL, limit=8)["piqa_local"]
    assert (found.items, found.available) == (8, 1838)
    assert found.main == "acc"
    assert zeroshot.mean_accuracy([found]).value == found.metrics["acc"].value
