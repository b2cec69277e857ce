"""Files of a report: the JSON, and the page where the packages for it are there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pruneengine.common.errors import InputError
from pruneengine.common.files import write_atomically
from pruneengine.report.page import Page, render
from pruneengine.report.pages.prune import prune_page
from pruneengine.report.pages.recover import recover_page
from pruneengine.report.pages.search import search_page
from pruneengine.report.pages.search_dsa import dsa_page
from pruneengine.report.pages.sparse import sparse_page
from pruneengine.report.values.structured import json_value

Say = Callable[[str], None]

PAGES: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Page]]] = {
    "prune": (("method", "ratio asked", "ratio reached", "parameters"), prune_page),
    "sparse": (("method", "sparsity asked", "sparsity reached", "zeros", "weights"), sparse_page),
    "search": (("method", "trials"), search_page),
    "dsa": (("method", "sparsity", "trials"), dsa_page),
    "recover": (("losses", "validation"), recover_page),
}


def report_files(verb: str, values: Mapping[str, Any], say: Say | None = None) -> dict[str, str]:
    """Return ``{"report.json": text, "report.html": text}``; the page shows nothing that the JSON does not hold.

    Args:
        verb: "prune", "sparse", "search" or "recover", whose page function names the values.
        values: plain values; what is not finite becomes null.
        say: told in one line why there is no page, when matplotlib is missing; a warning by default.

    Raises:
        ValueError: an unknown verb, or a value that its page cannot do without.
        TypeError: something else than plain data in the values.
    """
    if verb not in PAGES:
        raise InputError(f"no report for {verb!r}; expected one of {', '.join(PAGES)}")
    required, page_of = PAGES[verb]
    if missing := [key for key in required if key not in values]:
        raise InputError(f"the report of a {verb} needs {missing[0]!r}, got {', '.join(values) or 'nothing'}")
    # First, and not what an earlier report in the values says.
    content = {"verb": verb} | json_value(values) | {"verb": verb}
    files = {"report.json": json.dumps(content, indent=2) + "\n"}
    try:
        files["report.html"] = render(page_of(content))
    except ImportError as error:
        (say or _warn)(f"report.html is left out: {error}")
    return files


def write_report(folder: str | Path, verb: str, values: Mapping[str, Any], say: Say | None = None) -> list[Path]:
    """Write :func:`report_files` into ``folder``, each file whole or not at all; returns their paths."""
    paths = []
    for name, text in report_files(verb, values, say).items():
        write_atomically(Path(folder) / name, text)
        paths.append(Path(folder) / name)
    return paths


def _warn(line: str) -> None:
    """Warn in one line, at the caller of :func:`report_files`."""
    warnings.warn(line, stacklevel=3)
