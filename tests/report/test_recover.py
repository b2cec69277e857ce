"""The page of a recovery: its own numbers, and what the prune before it said."""

import math

from pruneengine.model import find_groups
from pruneengine.report import Measures, report_files
from pruneengine.report.values.structured import details, summary
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.prune import decide
from tests.helpers.pages import read
from tests.helpers.tiny import tiny_model


def recover_values():
    return {
        "losses": [[step, 3 + math.exp(-step / 20)] for step in range(1, 80)],
        "validation": [[0, 4.05], [40, 3.123], [79, 3.2]],
        "best_step": 40,
        "before": {"perplexity": 70.31, "accuracy": {"boolq": 0.571}},
        "after": {"perplexity": 38.97, "accuracy": {"boolq": 0.601}},
        "recipe": {"lora": {"r": 8, "alpha": 16}},
        "seconds": {"train": 412.0, "merge": 0.4},
        "warnings": ["31 rows were left out"],
    }


def test_a_recovery_keeps_its_own_apart_from_the_prune_before():
    own = {"recipe": {"lora_r": 8}, "seconds": {"train": 400.0}, "warnings": ["rows overlap"], "source": "pruned"}
    values = recover_values() | {"recipe": {"method": "wanda"}, "warnings": ["the text is short"], "recovery": own}
    page = read(report_files("recover", values)["report.html"]).text
    assert "Recovery of pruned" in page
    head, _, tail = page.partition("The prune before it")
    assert "rows overlap" in head
    assert "lora_r 8" in head
    assert "the text is short" not in head
    assert "the text is short" in tail
    assert "method wanda" in tail


def test_a_recovery_of_a_pruned_model_shows_its_plan_scores_and_the_dense_side():
    model = tiny_model()
    decided = decide(model, find_groups(model), None, PruneConfig(method="magnitude_l1", ratio=0.3))
    plan = decided.plan
    values = summary(decided, Measures(plan.params_before, 400), Measures(plan.params_after, 300)) | details(decided)
    values |= {"perplexity": {"dense": 16.5, "pruned": 70.31}, "perplexity tokens": 90, "perplexity dtype": "float32"}
    own = {"hashes": {"evaluation text": "ab"}, "perplexity dtype": "float32", "source": "pruned"}
    values = values | recover_values() | {"hashes": {"evaluation text": "ab"}, "recovery": own}
    page = read(report_files("recover", values)["report.html"])
    # The losses, the plan, and two kinds of scores.
    assert page.tags.count("figure") == 4
    for expected in (
        "dense before after difference perplexity 16.50 70.31 38.97 −31.3", "; dense 16.50",
        "Asked to remove 30.00%", f"parameters {plan.params_before:,} {plan.params_after:,}",
    ):  # fmt: skip
        assert expected in page.text
    for other in ({"hashes": {"evaluation text": "cd"}}, {"perplexity dtype": "bfloat16"}):
        page = read(report_files("recover", values | other)["report.html"]).text
        assert "dense before after" not in page
    # A search knows the text among its own.
    searched = values | {"texts": {"report": {"hash": "ab"}}}
    del searched["hashes"]
    assert "dense before after" in read(report_files("recover", searched)["report.html"]).text


def test_a_recovery_says_what_it_was_measured_on():
    own = {
        "perplexity tokens": 4_096, "perplexity dtype": "bfloat16", "source": "pruned",
        "evaluation": {"text": "wikitext2", "tokens a window": 512},
        "loss difference": {"mean": -0.512, "standard error": 0.0123},
    }  # fmt: skip
    page = read(report_files("recover", recover_values() | {"recovery": own})["report.html"]).text
    assert (
        "Text: wikitext2, windows of 512 tokens. Perplexity over 4,096 tokens, computed in bfloat16. "
        "Recovery changes the loss by −0.512 ± 0.012 nats a token."
    ) in page


def test_a_recovery_says_each_thing_once_and_goes_by_the_models_name():
    own = {"source": "/far/away/pruned", "recipe": {"config": {"lr": 0.1}}, "versions": {"torch": "2.13"}}
    values = recover_values() | {"recovery": own, "parameters": {"dense": 2_000, "pruned": 1_500}}
    assert "Held-out loss" in read(report_files("recover", values)["report.html"]).text
    values["before"], values["after"] = {"validation loss, nats": 4.05}, {"validation loss, nats": 3.123}
    page = read(report_files("recover", values)["report.html"]).text
    assert "Recovery of pruned" in page
    assert "Held-out loss" not in page
    assert "Parameters 1.5 k dense 2 k" in page
    assert "Options lr 0.1" in page


def test_a_recovery_shows_its_curves_and_both_sides():
    page = read(report_files("recover", recover_values())["report.html"])
    for expected in ("step 40 was kept", "70.31", "38.97", "−31.3", "accuracy boolq", "lora.r 8", "31 rows", "3.123"):
        assert expected in page.text
    assert page.tags.count("figure") == 1
