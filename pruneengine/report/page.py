"""Page of a report as a value (headline, sections, tables, figures), and its one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pruneengine.common.optional_imports import require_extra


@dataclass(frozen=True)
class Fact:
    """A main number: its label, its value, and a line beneath it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: headings; all empty for none.
        rows: cells, one per column.
        caption: shown above the table.
        left: number of columns from the left that hold words; the others hold numbers and are set flush right.
        folded: shown closed behind its caption, for long tables.
        total: the last row is the sum of the others.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    left: int = 1
    folded: bool = False
    total: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        svg: one ``<svg>`` element, put into the page as it is (:mod:`layers` escapes its text).
        caption: text beneath the drawing.
        alt: its content in words, for those who cannot see it.
        wide: as wide as the page's column, else half of it.
    """

    svg: str
    caption: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables and figures."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def empty(self) -> bool:
        """True if nothing stands beneath the heading."""
        return not (self.paragraphs or self.figures or any(table.rows for table in self.tables))


@dataclass(frozen=True)
class Page:
    """A whole report; sections with nothing in them are left out."""

    title: str
    subtitle: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()
    footer: str = ""


def render(page: Page) -> str:
    """Return the page as one HTML file that refers to nothing outside itself; all text is escaped.

    Raises:
        ImportError: jinja2 is missing; the message names the extra.
    """
    return _template().render(page=page, style=_text("style.css"))


@cache
def _template() -> Any:
    """Return the compiled template of the page."""
    with require_extra("report"):
        from jinja2 import Environment, StrictUndefined
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("page.html"))


def _text(name: str) -> str:
    """Return the text of a file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
