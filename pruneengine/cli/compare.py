"""The verb compare: results of several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruneengine.cli.app import out

if TYPE_CHECKING:
    from pruneengine.evaluation.comparison import Cell, Row

FORMS = {
    "count": "{:,.0f}",
    "bytes": "{:,.0f} B",
    "perplexity": "{:.3f}",
    "accuracy": "{:.4f}",
    "score": "{:.5g}",
    "rate": "{:.1f}",
    "ratio": "{:.2f}x",
}
DIFFERENCES = {"perplexity": "{:+.4f} nats", "accuracy": "{:+.4f}", "score": "{:+.5g}"}
ERRORS = {"score": "{:.3g}"}


def compare(
    results: Annotated[
        list[str], typer.Argument(metavar="RESULTS...", help="Files results.json, or folders that hold one.")
    ],
) -> None:
    """Print results side by side, with the differences to the first and their standard errors."""
    from rich.table import Table

    from pruneengine.evaluation.comparison import compare as rows_of
    from pruneengine.evaluation.results import read_results

    read = [read_results(path) for path in results]
    rows = rows_of(read)
    table = Table(title="differences are to the first column; ± one standard error", title_justify="left")
    table.add_column("")
    for label in _labels(results):
        table.add_column(label)
    for row in rows:
        table.add_row(row.name + (" *" if row.main else ""), *(_text(row, cell) for cell in row.cells))
    out.print(table)
    cells = [cell for row in rows for cell in row.cells if cell.difference_error is not None]
    if any(not cell.paired for cell in cells):
        out.print("i: errors taken for independent; the others are paired by window or item")
    if any(row.main for row in rows):
        out.print("*: enters the mean")


def _labels(paths: list[str]) -> list[str]:
    """Return the shortest end of every path that tells it from the others; a ``results.json`` goes by its folder."""
    whole = [Path(path).expanduser().resolve() for path in paths]
    parts = [(path.parent if path.name == "results.json" else path).parts for path in whole]

    def label(own: tuple[str, ...]) -> str:
        """Return the shortest end of a path that no other path has, or all of it."""
        others = set(parts) - {own}
        lengths = range(1, len(own) + 1)
        alone = (length for length in lengths if all(other[-length:] != own[-length:] for other in others))
        return str(Path(*own[-next(alone, len(own)) :]))

    return [label(own) for own in parts]


def _text(row: Row, cell: Cell) -> str:
    """Return a cell as text: value, difference to the first column, and the note."""
    if cell.value is None:
        return "-"
    text = FORMS[row.kind].format(cell.value)
    error = ERRORS.get(row.kind, "{:.4f}")
    if cell.standard_error is not None:
        text += f" ± {error.format(cell.standard_error)}"
    if cell.difference is not None:
        text += f"\n{DIFFERENCES.get(row.kind, '{:+.1%}').format(cell.difference)}"
        if cell.difference_error is not None:
            text += f" ± {error.format(cell.difference_error)}" + ("" if cell.paired else " i")
    if cell.note:
        text += f"\n[{cell.note}]" if cell.difference is not None else f"\nnot comparable: {cell.note}"
    return text
