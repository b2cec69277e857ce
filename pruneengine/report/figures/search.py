"""Figures of a search, each a function of plain values to SVG text; no data gives a figure that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruneengine.report.figures.layers import choose_scale, legend, say_empty, whole_numbers
from pruneengine.report.figures.svg import COLOURS, drawing
from pruneengine.report.words import clipped, percent

# Lines of baselines in the history, and bars of parameters; the page's tables hold all of them.
BASELINES, BARS = 8, 12


def history(trials: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Draw every trial's value, the best so far, trials that were stopped or failed, and baselines as lines.

    Args:
        trials: ``{"number", "state", "value", "origin"}``; smaller values are better.
        baselines: ``{"name", "value"}``; drawn as :func:`drawn_baselines` says.
        metric: label of the y axis.
    """
    done = [t for t in trials if t["state"] == "complete" and t["value"] is not None]
    stopped = [t for t in trials if t["state"] == "pruned"]
    failed = [t for t in trials if t["state"] == "fail"]
    illegal = [t for t in trials if t["state"] == "illegal"]
    with drawing(360, wide=True) as drawn:
        (ax,) = drawn.axes
        ax.set_xlabel("trial")
        ax.set_ylabel(clipped(metric, 44))
        known = drawn_baselines(trials, baselines)
        values = [t["value"] for t in (*done, *stopped) if t["value"] is not None] + [b["value"] for b in known]
        if not values:
            say_empty(ax, "no values")
        else:
            choose_scale(ax, values)
            _trials(ax, done, stopped, failed, illegal)
            ax.update_datalim([(0, baseline["value"]) for baseline in known], updatex=False)
            ax.margins(x=0.02, y=0.08)
            ax.autoscale_view()
            whole_numbers(ax)
            _baselines(ax, known)
            legend(ax)
    return drawn.svg


def drawn_baselines(
    trials: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return the best baseline, and up to seven more that beat the worst trial: more lines would squash the trials."""
    known = sorted((b for b in baselines if b["value"] is not None), key=lambda b: b["value"])[:BASELINES]
    worst = max((t["value"] for t in trials if t["value"] is not None), default=float("inf"))
    return known[:1] + [baseline for baseline in known[1:] if baseline["value"] <= worst]


def _trials(ax: Any, done: list[Any], stopped: list[Any], failed: list[Any], illegal: list[Any]) -> None:
    """Draw trials by state and origin, and the best value so far."""
    marks = (
        ("sampler", "o", "main", "searched"),
        ("start", "D", "third", "given first"),
        ("repeat", "s", "ink", "repeated"),
    )
    for origin, marker, colour, label in marks:
        own = [t for t in done if t.get("origin", "sampler") == origin]
        if own:
            xs, ys = [t["number"] for t in own], [t["value"] for t in own]
            ax.plot(xs, ys, marker, color=COLOURS[colour], markersize=4.5, label=label, markeredgewidth=0)
    seen = [t for t in stopped if t["value"] is not None]
    if seen:
        xs, ys = [t["number"] for t in seen], [t["value"] for t in seen]
        ax.plot(xs, ys, "x", color=COLOURS["muted"], markersize=4.5, label="stopped early")
    # Without a value there is only a place on the x axis.
    bare = [t["number"] for t in stopped if t["value"] is None]
    at_edge: tuple[tuple[list[Any], str, str | None], ...] = (
        (bare, "muted", None if seen else "stopped early"),
        ([t["number"] for t in failed], "second", "failed"),
        ([t["number"] for t in illegal], "soft", "no legal plan"),
    )
    for numbers, colour, mark_label in at_edge:
        if numbers:
            edge = ax.get_xaxis_transform()
            ax.plot(
                numbers, [0.015] * len(numbers), "x", color=COLOURS[colour], markersize=4.5, label=mark_label,
                transform=edge,
            )  # fmt: skip
    best, steps = float("inf"), []
    for trial in sorted(done, key=lambda t: t["number"]):
        best = min(best, trial["value"])
        steps.append((trial["number"], best))
    if steps:
        ax.plot(
            *zip(*steps, strict=True), color=COLOURS["main"], linewidth=1.4, drawstyle="steps-post", label="best so far"
        )


def _baselines(ax: Any, baselines: list[Mapping[str, Any]]) -> None:
    """Draw dashed lines, named at the right; names that would touch are spread."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = [float(to_axes.transform((0, baseline["value"]))[1]) for baseline in baselines]
    colour = COLOURS["third"]
    for baseline, height, place in zip(baselines, heights, spread(heights, 0.055), strict=True):
        ax.axhline(baseline["value"], color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.plot([1, 1.015], [height, place], color=colour, linewidth=0.7, transform=ax.transAxes, clip_on=False)
        name = clipped(baseline["name"], 22)
        ax.text(1.02, place, name, transform=ax.transAxes, va="center", fontsize=10.5, color=colour)


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Move ascending heights until neighbours are ``apart``, and down again from 1 where that is passed."""
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + apart) if places else height)
    ceiling = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - apart
    return places


def importance(shares: Mapping[str, float]) -> str:
    """Draw the share of the values' variance that each parameter explains: bars, the largest first, at most twelve."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])[:BARS]
    with drawing(40 + 30 * max(len(ranked), 3)) as drawn:
        (ax,) = drawn.axes
        if ranked:
            places = range(len(ranked))
            longest = max(share for _, share in ranked) or 1.0
            ax.barh(places, [share for _, share in ranked], height=0.36, color=COLOURS["main"])
            for place, (name, share) in zip(places, ranked, strict=True):
                # Above its bar: names are of any length, the figure is narrow.
                ax.text(0, place - 0.28, clipped(name, 44), va="bottom", fontsize=10.5, color=COLOURS["ink"])
                ax.text(
                    longest,
                    place - 0.28,
                    percent(share, 1),
                    va="bottom",
                    ha="right",
                    fontsize=10.5,
                    color=COLOURS["muted"],
                )
            ax.set_ylim(len(ranked) - 0.6, -0.75)
            ax.set_xlim(0, longest)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(visible=False)
            ax.spines["bottom"].set_visible(False)
        else:
            say_empty(ax, "too few trials")
    return drawn.svg


def pareto(points: Sequence[Mapping[str, Any]], x: str, y: str) -> str:
    """Draw loss against a cost, smaller being better in both; points that no other beats in both are joined.

    ``points`` are ``{"x", "y"}``, with a "name" where they are baselines. It is written beside those on the front
    and the best of them: more names would touch. ``x`` and ``y`` label the axes.
    """
    with drawing(260) as drawn:
        (ax,) = drawn.axes
        ax.set_xlabel(x)
        ax.set_ylabel(clipped(y, 36))
        if points:
            choose_scale(ax, [p["y"] for p in points])
            front, fixed = pareto_front(points), [p for p in points if p.get("name")]
            searched = [p for p in points if not p.get("name")]
            joined = {"linewidth": 1.2, "drawstyle": "steps-post"}
            for some, marks, colour, style in (
                (searched, "o", "soft", {"markersize": 4}),
                (front, "o-", "main", {"markersize": 4.5} | joined),
                (fixed, "D", "third", {"markersize": 4}),
            ):
                ax.plot([p["x"] for p in some], [p["y"] for p in some], marks, color=COLOURS[colour], **style)
            best = min(fixed, key=lambda p: p["y"], default=None)
            for point in (p for p in fixed if p is best or p in front):
                right = point["x"] > (min(p["x"] for p in points) + max(p["x"] for p in points)) / 2
                ax.annotate(
                    clipped(point["name"], 22), (point["x"], point["y"]), (-4 if right else 4, 4),
                    textcoords="offset points", ha="right" if right else "left", fontsize=10, color=COLOURS["third"],
                )  # fmt: skip
            ax.margins(0.08)
            _few_ticks(ax)
        else:
            say_empty(ax, "no points")
    return drawn.svg


def pareto_front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the points that no other point matches in both and beats in one, by ascending x."""
    front: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda p: (p["x"], p["y"])):
        if not front or point["y"] < front[-1]["y"]:
            front.append(point)
    return front


def _few_ticks(ax: Any) -> None:
    """Set at most five ticks of x, with short numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from pruneengine.report.words import short_count

    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
