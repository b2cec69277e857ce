"""Figures of reports: text that stays text, the page's colours, and no failure without data."""

import re

import pytest

from pruneengine.report.figures.layers import lines, loss_curves, plan_picture, score_spread
from pruneengine.report.figures.search import drawn_baselines, history, importance, pareto, pareto_front, spread
from tests.helpers.pages import Reader

ZERO = {"least": 0.0, "quartile": 0.0, "median": 0.0, "third quartile": 0.0, "most": 0.0}
ONE = {"number": 0, "state": "complete", "value": 1.0}
# What is drawn, and words that must stand in it.
EMPTY = {
    "plan": (lambda: plan_picture({}), "no units"),
    "plan without layers": (lambda: plan_picture({"mlp": {"units": [], "kept": []}}), "layer"),
    "plan without channels": (lambda: plan_picture({"mlp": {"units": [0, 0], "kept": [0, 0]}}), "mlp"),
    "scores": (lambda: score_spread([], "score"), "no scores"),
    "equal scores": (lambda: score_spread([{"layer": i} | ZERO for i in range(2)], "score"), "score"),
    "lines": (lambda: lines({}, "x", "y"), "no values"),
    "a line of nothing": (lambda: lines({"a": []}, "x", "y"), "no values"),
    "losses": (lambda: loss_curves([], []), "no losses"),
    "one loss": (lambda: loss_curves([(1, 2.0)]), "training"),
    "equal losses": (lambda: loss_curves([(i, 2.0) for i in range(60)], [(0, 2.0)], 0), "kept"),
    "history": (lambda: history([], [], "loss"), "no values"),
    "failed trials": (lambda: history([{"number": 0, "state": "fail", "value": None}], [], "loss"), "no values"),
    "one trial": (lambda: history([ONE], [{"name": "base", "value": 1.0}], "loss"), "base"),
    "importance": (lambda: importance({}), "too few trials"),
    "no importance": (lambda: importance({"a": 0.0}), "0.0%"),
    "pareto": (lambda: pareto([], "parameters", "loss"), "no points"),
    "one point": (lambda: pareto([{"x": 1, "y": 1, "name": "alone"}], "parameters", "loss"), "alone"),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.filterwarnings("error")
def test_figures_without_data_or_spread(name):
    draw, words = EMPTY[name]
    svg = draw()
    reader = Reader(svg)
    assert reader.tags[0] == "svg"
    assert "nan" not in svg.lower()
    assert words in reader.text


def test_a_figure_keeps_its_text_and_speaks_the_pages_colours():
    svg = score_spread(
        [
            {"layer": i, "least": 1e-3, "quartile": 0.1, "median": 1.0, "third quartile": 2.0, "most": 9.0}
            for i in range(4)
        ],
        "score of <channels>",
    )
    reader = Reader(svg)
    assert "score of <channels>" in reader.text
    assert "0.01" in reader.text  # the ticks of a logarithmic axis, in plain digits
    assert {"var(--main)", "var(--soft)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"(url\(|href=\")#\w+", "", svg))


def test_the_history_draws_baselines_that_trials_reach():
    trials = [{"number": 0, "state": "complete", "value": 3.0}]
    far = [{"name": "far", "value": 9.0}, {"name": "near", "value": 2.5}, {"name": "none", "value": None}]
    assert [b["name"] for b in drawn_baselines(trials, far)] == ["near"]
    assert [b["name"] for b in drawn_baselines(trials, far[:1])] == ["far"]
    assert "near" in Reader(history(trials, far, "loss")).text


def test_the_history_draws_every_origin_that_a_search_gives():
    trials = [
        {"number": i, "state": "complete", "value": 3.0 - i, "origin": origin}
        for i, origin in enumerate(("start", "sampler", "repeat"))
    ]
    text = Reader(history(trials, [], "loss")).text
    assert all(label in text for label in ("given first", "searched", "repeated"))


def test_names_beside_lines_do_not_touch():
    assert spread([0.1, 0.1, 0.5], 0.05) == pytest.approx([0.1, 0.15, 0.5])
    assert spread([0.1, 0.97, 0.98], 0.05) == pytest.approx([0.1, 0.95, 1.0])
    assert spread([], 0.05) == []


def test_the_front_is_what_nothing_beats():
    points = [{"x": x, "y": y} for x, y in ((1, 5), (2, 5), (2, 3), (3, 4), (4, 1), (1, 6))]
    assert [(p["x"], p["y"]) for p in pareto_front(points)] == [(1, 5), (2, 3), (4, 1)]
