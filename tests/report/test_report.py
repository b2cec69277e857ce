"""Reports: well-formed pages that refer to nothing outside, escape what they are given and show what the JSON holds."""

import builtins
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from pruneengine.model import find_groups
from pruneengine.report import Measures, page, report_files, write_report
from pruneengine.report.page import Fact, Figure, Page, Section, Table, render
from pruneengine.report.pages.prune import prune_page
from pruneengine.report.values.structured import details, hashes, json_value, summary
from pruneengine.report.words import change, clipped, duration, number, short_count, signed
from pruneengine.structured.config import PruneConfig
from pruneengine.structured.prune import decide
from tests.helpers.pages import read
from tests.helpers.tiny import tiny_model, tiny_tokens
from tests.report.test_recover import recover_values

HOSTILE = "</svg><script>alert('x')</script> & $x_1$ \"q\" {{ 7 * 7 }} 層 \x00\ud800"


def prune_values():
    return {
        "method": "param_first",
        "ratio asked": 0.2,
        "ratio reached": 0.1992,
        "parameters": {"dense": 134_515_008, "pruned": 113_364_288},
    }


def search_values():
    trials = [
        {
            "number": i,
            "state": ("complete", "complete", "pruned", "pruned", "fail")[i % 5],
            "value": None if i % 5 >= 3 else 4 - 0.1 * i,
            "params": {"exponent": i / 10, "shape": "per-layer"},
            "seconds": {"score": 0.5, "evaluate": 8.0},
            "origin": ("start", "repeat", "sampler")[min(i, 2)],
            "parameters": 1000 + i,
        }
        for i in range(12)
    ]
    return {
        "method": "adapruner", "ratio": 0.2, "shape": "per-layer", "trials": trials,
        "baselines": [{"name": "energy", "value": 3.61, "held_out": 3.72, "reached": 0.199}],
        "best": {
            "number": 11, "value": 2.9, "held_out": 3.011, "params": {"exponent": 1.1},
            "data": "16 windows", "metric": "mean loss",
        },
        "importance": {"exponent": 0.75, "shape": 0.25},
        "texts": {"calibration": {"spec": "c4:32", "windows": 32, "tokens": 4096, "hash": "ab" * 32, "overlap": 3}},
        "versions": {"optuna": "5.0.0"}, "seed": 7, "seconds": 813.2,
    }  # fmt: skip


MINIMAL = {
    "prune": prune_values(),
    "search": {"method": "adapruner", "trials": []},
    "recover": {"losses": [], "validation": []},
}


# Drawn once for all tests that read them.
FILES = {
    "search": cache(lambda: report_files("search", search_values())),
    "recover": cache(lambda: report_files("recover", recover_values())),
}


@pytest.fixture(scope="module")
def decided():
    model = tiny_model()
    config = PruneConfig(
        method="hywia", hywia_steps=4, hywia_samples=2, ratio=0.3, allocation="global", shape="per-layer"
    )
    return decide(model, find_groups(model), tiny_tokens(6), config)


@pytest.mark.parametrize("verb", MINIMAL)
def test_a_page_from_the_least(verb):
    files = report_files(verb, MINIMAL[verb])
    assert json.loads(files["report.json"]) == {"verb": verb} | MINIMAL[verb]
    assert "nan" not in read(files["report.html"]).text.lower()


def test_a_prune_shows_its_plan_scores_and_measures(decided):
    plan = decided.plan
    dense, pruned = Measures(plan.params_before, 400), Measures(plan.params_after, 300)
    values = summary(decided, dense, pruned, ("a warning",)) | details(decided)
    values |= {"recipe": {"config": decided.config.to_dict(), "source": "some/model"}, "hashes": hashes(decided)}
    values |= {"seconds": {"calibrate": 28.94}, "prompt": "once", "continuation": " upon a time"}
    values["proof"] = {
        "max_difference": 1e-6,
        "tolerance": 1e-4,
        "argmax_agreement": 0.5,
        "loader": "L()",
        "seconds": 1,
    }
    files = report_files("prune", values)
    page, content = read(files["report.html"]), json.loads(files["report.json"])
    for expected in (
        "model, pruned by hywia", f"{plan.params_before:,}", f"{plan.params_after:,}", "a warning", "28.9 s",
        "upon a time", "within 1.0e-06", "at 50.0% of positions", decided.statistics.model,
        f"step {decided.fit.best} was kept",
    ):  # fmt: skip
        assert expected in page.text
    # The plan, two kinds of scores, share and correlation of the blend, and the fit.
    assert page.tags.count("figure") == 6
    for kind, column in content["plan"].items():
        names = [f"layers.{layer}.{kind}" for layer in range(3)]
        assert column["kept"] == [len(plan.keep[name]) for name in names]
        assert column["units"] == [plan.units[name] for name in names]
    assert content["plan"]["heads"]["which"][0] == "".join(str(int(u in plan.keep["layers.0.heads"])) for u in range(3))
    row = next(row for row in content["scores"] if (row["kind"], row["layer"]) == ("mlp", 1))
    assert row["median"] == pytest.approx(decided.scores.groups["layers.1.mlp"].double().quantile(0.5).item())


def test_a_search_shows_trials_baselines_and_importance():
    page = read(FILES["search"]()["report.html"])
    for expected in (
        "Search with adapruner", "20.0% of the prunable parameters", "The best is trial 11, value 2.900, and 3.011",
        "3.011", "+0.710", "6 complete, 4 stopped early, 2 failed", "energy", "75.0%", "c4:32", "abababababab",
        "Overlap with other texts was found for: calibration", "13.6 min", "seed 7", "given first",
    ):  # fmt: skip
        assert expected in page.text
    assert page.tags.count("figure") == 3
    assert page.tags.count("details") == 1


def test_a_search_names_only_texts_that_share_something_and_versions_once():
    shared = {"windows": 4, "tokens": 96, "hash": "ab" * 32, "spec": "text.txt"}
    texts = {
        "search": shared | {"overlap": {"pool": 0.0}},
        "report": shared | {"overlap": {"pool": 0.0, "search": 0.25}},
    }
    recipe = {"search": {"ratio": 0.25}, "versions": {"optuna": "5.0.0"}}
    page = read(report_files("search", search_values() | {"texts": texts, "recipe": recipe})["report.html"]).text
    assert "Overlap with other texts was found for: report." in page
    assert ("pool: 0" in page, "search: 25.0%" in page) == (False, True)
    assert page.count("5.0.0") == 1
    assert "Options ratio 0.25" in page


def cache_values(*kv_bytes):
    values = search_values()
    values["trials"] = [
        {"number": i, "state": "complete", "value": 3.0 - i / 10, "params": {}, "seconds": {}, "kv_bytes": b}
        for i, b in enumerate(kv_bytes)
    ]
    values["baselines"] = [{"name": "energy", "value": 2.95, "held_out": None, "reached": 0.2, "kv_bytes": 23_040}]
    return values


def test_a_search_shows_loss_against_cache():
    page = read(report_files("search", cache_values(23_040, 46_080, 34_560))["report.html"])
    assert "Loss against cost" in page.text
    assert "KV cache, bytes a token" in page.text
    assert "Diamonds: baselines" in page.text
    # Equal costs leave nothing to draw, and older reports do not know them.
    alike = read(report_files("search", cache_values(23_040, 23_040))["report.html"])
    assert "alike in the bytes of KV cache that a token takes, 23,040: there is nothing to trade" in alike.text
    assert "Diamonds" not in alike.text
    older = cache_values(None, None) | {"baselines": [{"name": "energy", "value": 2.95}]}
    assert "Loss against cost" not in read(report_files("search", older)["report.html"]).text


def test_a_prune_shows_what_was_compensated():
    rows = [
        {"group": f"layers.{i}.{kind}", "ridge": None if i else 0.01, "before": 0.5 - i / 10, "after": 0.4 - i / 10}
        for kind in ("heads", "mlp")
        for i in range(2)
    ]
    fitted = {"how": "least-squares", "mode": "sequential", "held-out error": rows}
    values = prune_values() | {"compensation": fitted}
    page = read(report_files("prune", values)["report.html"])
    for expected in (
        "By least-squares, sequential: 2 of 4 groups were refitted", "from 45.0% to 35.0%",
        "layers.1.mlp – 40.00% 30.00%", "layers.0.heads 0.01 50.00% 40.00%", "KV groups: relative squared error",
    ):  # fmt: skip
        assert expected in page.text
    bias = {"how": "bias", "mode": "one-shot", "held-out error": [row | {"ridge": None} for row in rows]}
    page = read(report_files("prune", values | {"compensation": bias})["report.html"])
    assert "4 of 4 groups got a bias" in page.text
    nothing = {"how": "bias", "mode": "one-shot", "held-out error": []}
    page = read(report_files("prune", values | {"compensation": nothing})["report.html"])
    assert "Compensation" not in page.text


def test_a_trial_without_a_legal_plan_is_not_called_stopped():
    values = search_values()
    for trial in values["trials"][2:4]:
        trial["illegal"] = "ratio 0.9 is out of reach"
    page = read(report_files("search", values)["report.html"])
    assert "6 complete, 2 stopped early, 2 without a legal plan, 2 failed" in page.text
    assert "no legal plan" in page.text


@pytest.mark.parametrize("verb", FILES)
def test_the_json_holds_what_the_page_shows(verb):
    """The page is a function of the JSON: read back, it gives the same page."""
    files = FILES[verb]()
    content = json.loads(files["report.json"])
    assert content.pop("verb") == verb
    assert report_files(verb, content)["report.html"] == files["report.html"]


@pytest.mark.filterwarnings("error")
def test_what_is_given_is_shown_and_not_run():
    values = search_values() | {"method": HOSTILE, "warnings": [HOSTILE], "importance": {HOSTILE: 1.0}}
    values["baselines"] = [{"name": HOSTILE, "value": 3.5}]
    values["best"] |= {"metric": HOSTILE, "params": {HOSTILE: HOSTILE}}
    text = report_files("search", values)["report.html"]
    page = read(text)
    assert text.encode("utf-8")
    assert "script" not in page.tags
    assert "</svg><script>alert('x')</script> & $x_1$ \"q\" {{ 7 * 7 }} 層 ��" in page.text
    hostile = prune_values() | {"method": HOSTILE, "recipe": {"source": HOSTILE, "config": {HOSTILE: [HOSTILE]}}}
    assert "script" not in read(report_files("prune", hostile)["report.html"]).tags


def test_tables_stay_in_their_box_and_numbers_stand_right():
    table = Table(("stage", "time"), (("load", "1 s"), ("total", "1 s")), total=True)
    page = Page("T", "", (Fact("Parameters", "113 M"),), (Section("S", tables=(table,)), Section("left out")))
    text = render(page)
    assert '<th scope="col" class="number">time</th>' in text
    assert '<td class="number">1 s</td>' in text
    assert text.index('class="scroll"') < text.index("<table")
    assert text.count('<tr class="total">') == 1
    assert "left out" not in text
    assert "113 M" in read(text).text


def test_what_was_asked_follows_the_protocol():
    config = {"protocol": "llm-pruner", "layers": [4, 30], "calibration": "builtin"}
    page = render(prune_page(prune_values() | {"recipe": {"config": config, "calibration_hash": "ab"}}))
    assert "Asked to remove 20.00% inside each of the layers 4 to 29; that is 19.92% of the prunable" in page
    assert "Builtin text is for smoke tests" in page
    unread = render(prune_page(prune_values() | {"recipe": {"config": config, "calibration_hash": None}}))
    assert "smoke tests" not in unread
    far = render(prune_page(prune_values() | {"ratio reached": 0.333, "kinds": ["heads"]}))
    assert "Asked to remove 20.00% of the parameters in KV groups; the plan removes 33.30%" in far
    assert "These are the nearest legal widths" in far


def test_the_page_forbids_the_browser_to_load_or_run_anything():
    assert "default-src 'none'" in render(Page("T", "", (), ()))


def test_the_build_ships_the_template_and_the_style():
    package = Path(page.__file__).parent
    shipped = (package.parents[1] / "setup.py").read_text()
    others = [path.name for path in package.iterdir() if path.is_file() and path.suffix != ".py"]
    assert sorted(others) == ["page.html", "style.css"]
    assert all(f'"{name}"' in shipped for name in others)


def test_a_removed_layer_is_named():
    values = prune_values() | {"kinds": ["layers"]}
    values["plan"] = {
        "heads": {"units": [3, 3], "kept": [3, 0], "which": ["111", "000"]},
        "mlp": {"units": [8, 8], "kept": [8, 0]},
    }
    (figure,) = next(section for section in prune_page(values).sections if section.title == "The plan").figures
    assert isinstance(figure, Figure)
    assert "goes as a whole: 1." in figure.caption
    assert "MLP channels kept per layer: 0 to 8" in figure.alt


def test_without_matplotlib_the_json_is_written_and_one_line_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *more, **others):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return real(name, *more, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    said = []
    assert write_report(tmp_path, "recover", recover_values(), said.append) == [tmp_path / "report.json"]
    assert json.loads((tmp_path / "report.json").read_text())["best_step"] == 40
    assert len(said) == 1
    assert re.fullmatch(r"report.html is left out: No module .* pip install 'pruneengine\[report\]'", said[0])
    with pytest.warns(UserWarning, match="report.html is left out"):
        assert list(report_files("recover", recover_values())) == ["report.json"]


def test_both_files_are_written_and_replaced(tmp_path):
    for _ in range(2):
        paths = write_report(tmp_path / "out", "recover", recover_values())
    assert (
        sorted(path.name for path in (tmp_path / "out").iterdir())
        == ["report.html", "report.json"]
        == sorted(path.name for path in paths)
    )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no report for 'bake'; expected one of prune, sparse, search, dsa, recover"):
        report_files("bake", {})
    with pytest.raises(ValueError, match="the report of a search needs 'trials', got method"):
        report_files("search", {"method": "a"})
    with pytest.raises(TypeError, match="a report holds plain values, got object"):
        report_files("recover", recover_values() | {"recipe": object()})


def test_values_become_plain():
    assert json_value({1: (float("nan"), torch.tensor([1.5]), True)}) == {"1": [None, [1.5], True]}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (change(200, 100), "−50.0%"),
        (change(0, 1), "–"),
        (signed(-0.0123), "−0.0123"),
        (number(1180.4), "1,180"),
        (number(0.0031416), "0.003142"),
        (number(None), "–"),
        (number(-0.25), "−0.2500"),
        (short_count(134_515_008), "134.5 M"),
        (duration(813.2), "13.6 min"),
        (duration(9000), "2.50 h"),
        (clipped("a" * 30 + "b" * 30, 10), "aaaaaa…bbb"),
    ],
)
def test_numbers_in_words(written, expected):
    assert written == expected
