"""Figures over layers and steps, each a function of plain values to SVG text; no data gives a figure that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruneengine.report.figures.svg import COLOURS, drawing

Point = Sequence[float]
Box = tuple[float, float, float, float]

# Largest number of units per layer that are drawn as cells of their own; above, the kept ones are a bar.
CELLS = 32
LINES = ("main", "second", "third", "ink")


def plan_picture(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the plan: one row of axes per kind, one column per layer, kept units filled.

    Args:
        kinds: ``{label: {"units": [per layer], "kept": [per layer], "which": ["101", ...] or None}}``; ``which`` marks
            every unit of a layer as kept (1) or not; a removed layer keeps 0.
    """
    heights = tuple(1.0 if max(rows["units"], default=0) > CELLS else 0.5 for rows in kinds.values())
    with drawing(int(80 + 130 * sum(heights or (1,))), wide=True, ratios=heights or (1,)) as drawn:
        for ax, (label, rows) in zip(drawn.axes, kinds.items(), strict=False):
            _plan_row(ax, label, rows)
        if not kinds:
            say_empty(drawn.axes[0], "no units")
        drawn.axes[-1].set_xlabel("layer")
    return drawn.svg


def _plan_row(ax: Any, label: str, rows: Mapping[str, Any]) -> None:
    """Draw one kind: a cell per unit where units are few, else a bar per layer, and a cross where all go."""
    units, kept, which = rows["units"], rows["kept"], rows.get("which")
    kept_boxes: list[Box] = []
    lost_boxes: list[Box] = []
    gap = 0.12
    for layer, (total, stay) in enumerate(zip(units, kept, strict=True)):
        left = layer - 0.5 + gap / 2
        if which and total <= CELLS:
            marks = which[layer] or "0" * total
            for unit, mark in enumerate(marks):
                box = (left, unit + gap / 2, 1 - gap, 1 - gap)
                (kept_boxes if mark == "1" else lost_boxes).append(box)
        else:
            kept_boxes.append((left, 0, 1 - gap, stay))
            lost_boxes.append((left, stay, 1 - gap, total - stay))
    _boxes(ax, lost_boxes, "empty")
    _boxes(ax, kept_boxes, "main")
    most = max(units, default=1) or 1
    removed = [layer for layer, stay in enumerate(kept) if stay == 0]
    ax.plot(removed, [most / 2] * len(removed), "x", color=COLOURS["second"], markersize=5)
    ax.set_xlim(-0.7, max(len(units), 1) - 0.3)
    ax.set_ylim(0, most)
    ax.set_yticks([0, most] if most <= 4 else [0, round(most / 2), most])
    ax.grid(visible=False)
    ax.set_ylabel(label)
    whole_numbers(ax)


def _boxes(ax: Any, boxes: Sequence[Box], colour: str) -> None:
    """Draw rectangles (left, bottom, width, height) as one path: thousands of elements would make the page slow."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    boxes = [box for box in boxes if box[3] > 0]
    if not boxes:
        return
    corners = [
        point
        for x, y, width, height in boxes
        for point in ((x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y))
    ]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
    ax.add_patch(PathPatch(Path(corners, codes), facecolor=COLOURS[colour], linewidth=0))


def sparsity_picture(rows: Mapping[str, Sequence[float | None]]) -> str:
    """Draw one row per linear and one column per layer: each cell is filled from below by its share of kept weights.

    Args:
        rows: ``{label: [sparsity of each layer's]}``, None where the linear stays dense unasked.
    """
    gap = 0.12
    kept_boxes: list[Box] = []
    lost_boxes: list[Box] = []
    for row, sparsities in enumerate(rows.values()):
        for layer, sparsity in enumerate(sparsities):
            left, bottom = layer - 0.5 + gap / 2, len(rows) - row - 1 + gap / 2
            kept = (1 - gap) * (1 - (sparsity or 0))
            kept_boxes.append((left, bottom, 1 - gap, kept))
            lost_boxes.append((left, bottom + kept, 1 - gap, 1 - gap - kept))
    with drawing(60 + 34 * max(1, len(rows)), wide=True) as drawn:
        (ax,) = drawn.axes
        _boxes(ax, lost_boxes, "empty")
        _boxes(ax, kept_boxes, "main")
        ax.set_xlim(-0.7, max(map(len, rows.values()), default=1) - 0.3)
        ax.set_ylim(0, len(rows) or 1)
        ax.set_yticks([len(rows) - row - 0.5 for row in range(len(rows))], list(rows))
        ax.grid(visible=False)
        ax.set_xlabel("layer")
        if rows:
            whole_numbers(ax)
        else:
            say_empty(ax, "no linears")
    return drawn.svg


def score_spread(rows: Sequence[Mapping[str, float]], label: str) -> str:
    """Draw the spread of a kind's scores in every layer: least to most thin, quartiles thick, median as a dot.

    Args:
        rows: ``{"layer", "least", "quartile", "median", "third quartile", "most"}`` of every scored layer.
        label: what is scored.
    """
    with drawing(230) as drawn:
        (ax,) = drawn.axes
        if rows:
            layers = [row["layer"] for row in rows]
            columns = {key: [row[key] for row in rows] for key in ("least", "quartile", "median", "third quartile")}
            most = [row["most"] for row in rows]
            ax.vlines(layers, columns["least"], most, color=COLOURS["soft"], linewidth=0.8)
            thick = min(6.0, 180 / len(rows))
            ax.vlines(layers, columns["quartile"], columns["third quartile"], color=COLOURS["soft"], linewidth=thick)
            ax.plot(layers, columns["median"], "o", color=COLOURS["main"], markersize=min(3.5, thick))
            choose_scale(ax, [*columns["least"], *most])
            whole_numbers(ax)
        else:
            say_empty(ax, "no scores")
        ax.set_ylabel(label)
        ax.set_xlabel("layer")
    return drawn.svg


def lines(series: Mapping[str, Sequence[Point]], x: str, y: str) -> str:
    """Draw ``{name: [(x, y), ...]}`` as lines, one colour per series, at most four; ``x`` and ``y`` label the axes."""
    with drawing(230) as drawn:
        (ax,) = drawn.axes
        for (name, points), colour in zip(series.items(), LINES, strict=False):
            ax.plot(*_columns(points), "o-", color=COLOURS[colour], linewidth=1.2, markersize=2.8, label=name)
        if any(series.values()):
            whole_numbers(ax)
            if len(series) > 1:
                legend(ax)
        else:
            say_empty(ax, "no values")
        ax.set_xlabel(x)
        ax.set_ylabel(y)
    return drawn.svg


def loss_curves(losses: Sequence[Point], validation: Sequence[Point] = (), best_step: int | None = None) -> str:
    """Draw training and validation loss by step, and the step that was kept.

    Args:
        losses: ``(step, mean nll)``; with over 50 of them a running mean is drawn over the single ones.
        validation: the same on text that is not trained on.
        best_step: marked by a line.
    """
    with drawing(300, wide=True) as drawn:
        (ax,) = drawn.axes
        if losses:
            steps, values = _columns(losses)
            smooth = len(values) > 50
            ax.plot(steps, values, color=COLOURS["soft"], linewidth=0.9 if smooth else 1.6, label="training")
            if smooth:
                window = len(values) // 25
                ax.plot(steps, _running_mean(values, window), color=COLOURS["main"], linewidth=1.6, label="its mean")
        if validation:
            ax.plot(*_columns(validation), "o-", color=COLOURS["second"], markersize=4, linewidth=1.2, label="held out")
        if best_step is not None and (losses or validation):
            ax.axvline(best_step, color=COLOURS["ink"], linewidth=0.9, linestyle=(0, (4, 3)), label="kept")
        if losses or validation:
            choose_scale(ax, [value for _, value in (*losses, *validation)])
            whole_numbers(ax)
            legend(ax)
        else:
            say_empty(ax, "no losses")
        ax.set_xlabel("step")
        ax.set_ylabel("loss, nats a token")
    return drawn.svg


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return the x and the y values of points."""
    return [x for x, _ in points], [y for _, y in points]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return means over up to ``window`` values on either side."""
    means = []
    for i in range(len(values)):
        near = values[max(0, i - window) : i + window + 1]
        means.append(sum(near) / len(near))
    return means


def choose_scale(ax: Any, values: Sequence[float]) -> None:
    """Set a logarithmic y axis where values span more than a factor of 20; linear near 0 if some are not positive."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    positive = sorted(value for value in values if value > 0)
    if positive and positive[-1] > 20 * positive[len(positive) // 20]:
        if min(values) > 0:
            ax.set_yscale("log")
        else:
            ax.set_yscale("symlog", linthresh=positive[len(positive) // 20])
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))


def whole_numbers(ax: Any) -> None:
    """Set ticks of x at whole numbers only: layers, steps, trials."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))


def legend(ax: Any) -> None:
    """Add a legend above the axes, in one row where it fits."""
    columns = 6 if ax.figure.get_size_inches()[0] > 8 else 2
    ax.figure.legend(loc="outside upper left", ncols=columns, frameon=False, labelcolor=COLOURS["ink"], borderpad=0)


def say_empty(ax: Any, words: str) -> None:
    """Write words in place of data."""
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=COLOURS["muted"])
    ax.set_xticks([])
    ax.set_yticks([])
