"""Drawings by matplotlib as SVG text to be put into a page, in the page's own colours and fonts."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pruneengine.common.optional_imports import require_extra

# A drawing names its colours by stand-ins, which become the style sheet's variables: so one drawing serves the light
# and the dark page.
COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "rule": "#030303",
    "empty": "#040404",
    "main": "#050505",
    "soft": "#060606",
    "second": "#070707",
    "third": "#080808",
    "page": "#090909",
}
# In CSS pixels: half the page's column (all of it on a phone), and the whole column.
NARROW, WIDE = 370, 760

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "svg.hashsalt": "pruneengine",
    "text.parse_math": False,  # names are shown as they are, whatever dollars they hold
    "axes.unicode_minus": True,
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "hatch.linewidth": 0.6,
}


@dataclass
class Drawing:
    """Axes to draw on, and the SVG text once they are complete."""

    axes: list[Any]
    svg: str = ""


@contextmanager
def drawing(height: int, *, wide: bool = False, ratios: tuple[float, ...] = (1,)) -> Iterator[Drawing]:
    """Yield axes above each other that share x, styled for the page; :attr:`Drawing.svg` is there after the block.

    Args:
        height: in CSS pixels.
        wide: as wide as the page's column, else half of it.
        ratios: relative heights of the axes, one each.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    with require_extra("report"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    # 72 points an inch, so that a point of the drawing is a pixel of the page.
    with rc_context(_SETTINGS), warnings.catch_warnings():
        # The browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=((WIDE if wide else NARROW) / 72, height / 72), layout="constrained")
        grid = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
        axes = list(grid[:, 0])
        for ax in axes:
            _style(ax)
        result = Drawing(axes)
        yield result
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    result.svg = _inline(text.getvalue())


def _style(ax: Any) -> None:
    """Style axes for the page: a rule at the bottom and horizontal grid lines."""
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(COLOURS["rule"])
    ax.tick_params(color=COLOURS["rule"], labelcolor=COLOURS["muted"], length=3)
    ax.tick_params(axis="y", which="both", length=0)
    ax.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
    ax.set_axisbelow(True)
    ax.xaxis.label.set_color(COLOURS["muted"])
    ax.yaxis.label.set_color(COLOURS["muted"])


def _inline(document: str) -> str:
    """Return the ``<svg>`` element alone, in the page's colours and font.

    Prolog and name spaces are left out: HTML knows them.
    """
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Groups carry names that repeat from drawing to drawing, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # What is referred to (clip paths, markers) must be told apart from the next drawing's.
    own = hashlib.sha256(svg.encode()).hexdigest()[:6]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}", svg)
    svg = re.sub(r"font:\s*([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"\s*font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    for name, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg.strip()
