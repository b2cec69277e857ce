"""Functions from text: our notation and the strings of DSA's authors. Names are looked up; nothing is evaluated.

Our notation, spaces and letter case free::

    function  := pre "|" reduce [ "|" last ] { "|" option }
    pre       := name [ "," name ]                "no" for none; absminmax, absnorm and absexp are two names in one
    reduce    := name
    last      := transform [ "," post ]           "no" for none
    option    := spread | sign | "compat"         each at most once, in any order
    spread    := ( "λ" | "lambda" | "spread" ) "=" number         in (0, 0.5]; 0.08 when absent
    sign      := "+" | "-" | "sign=+" | "sign=-"                  "+" when absent

``absminmax | var | atan, sigmoid | λ=0.08`` is one. Names: :mod:`.names`. What :class:`Function`
prints is this notation, and reads back as an equal value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pruneengine.sparse.functions.function import SPREAD, Function
from pruneengine.sparse.functions.names import COMPOUNDS, known

_SPREAD_NAMES = ("λ", "lambda", "spread")
_SIGNS = {"+": 1, "-": -1, "+1": 1, "-1": -1}
Piece = tuple[str, int]


def parse(text: str) -> Function:
    """The function that a text describes, in our notation or the authors' (``W:(..)-(..)-(..)-(..)``).

    Raises:
        ValueError: text that is not a function, with the position (from 1) and what was expected there.
    """
    if not isinstance(text, str):
        raise TypeError(f"a function must be text, got {text!r}")
    if re.match(r"\s*W\s*:", text, re.IGNORECASE):
        return parse_published(text)
    stages = list(_pieces(text, "|", 0))
    if len(stages) < 2:
        raise _error(text, len(text), "expected '|' and a reduction: pre | reduce | transform, post | λ=0.08")
    first, second, *rest = stages
    compat = any(stage.lower() == "compat" for stage, _ in rest)
    pre = _pre(text, *first, compat)
    reduce = _operation(text, "reduce", *second)
    last = ["no", "no"]
    if rest and not _is_option(rest[0][0]):
        names = list(_pieces(rest[0][0], ",", rest[0][1]))
        if len(names) > 2:
            raise _error(text, names[2][1], "expected '|' or the end: a transform and a post operation at most")
        last[: len(names)] = _last(text, names, compat)
        rest = rest[1:]
    options = _options(text, rest)
    return Function(pre, reduce, *last, **options)


def parse_published(text: str) -> Function:
    """The compat function of a string of the authors, as their code reads it.

    ``W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)``: pre, reduction, what follows, λ. Their code parses the λ and never uses it:
    the spread is 0.08, its ``--Lamda``. Of the three-part strings one such as ``W:(ABS)-(VAR)-(SIN)`` has no λ, and
    ``W:(ABS)-(VAR)-(9)``, on which their code fails for want of an operation "9", is read as it must have been meant:
    nothing after the reduction, and again a λ that is not used.

    Raises:
        ValueError: text of another form, with the position and what was expected; a reduction that only exists on
            matrices; one of several operations in the reduction.
    """
    start = re.match(r"\s*W\s*:", text, re.IGNORECASE)
    if not start:
        raise _error(text, 0, "expected 'W:(pre)-(reduce)-(post)-(λ)'")
    parts = list(_groups(text, start.end()))
    if len(parts) not in (3, 4):
        raise _error(text, len(text), f"expected 3 or 4 stages in parentheses, found {len(parts)}")
    if len(parts) == 4 or re.fullmatch(r"\s*\d+\s*", parts[2][0]):
        content, at = parts.pop()
        if not re.fullmatch(r"\s*\d+\s*", content):
            raise _error(text, at, f"expected a whole number λ, found {content.strip()!r}")
    pre = _pre(text, *parts[0], compat=True) if parts[0][0].strip() else ()
    reduce = _operation(text, "reduce", *parts[1])
    last = list(_pieces(parts[2][0], ",", parts[2][1])) if len(parts) == 3 and parts[2][0].strip() else []
    if len(last) > 2:
        raise _error(text, last[2][1], "expected ')': two operations after the reduction at most")
    return Function(pre, reduce, *_last(text, last, compat=True), spread=SPREAD, compat=True)


def _groups(text: str, at: int) -> Iterator[Piece]:
    group = re.compile(r"\s*\(([^()|-]*)\)\s*")
    while True:
        found = group.match(text, at)
        if not found:
            raise _error(text, at, "expected operations in parentheses")
        yield found[1], found.start(1)
        at = found.end()
        if at == len(text):
            return
        if text[at] != "-":
            raise _error(text, at, f"expected '-' or the end, found {text[at]!r}")
        at += 1


def _pieces(text: str, separator: str, at: int) -> Iterator[Piece]:
    """The parts between separators, without the spaces around them, each with where it begins."""
    for part in text.split(separator):
        yield part.strip(), at + len(part) - len(part.lstrip())
        at += len(part) + len(separator)


def _pre(text: str, stage: str, at: int, compat: bool) -> tuple[str, ...]:
    found: list[str] = []
    for name, begin in _pieces(stage, ",", at):
        found += COMPOUNDS.get(name.lower()) or [_operation(text, "pre", name, begin, compat)]
        if len([one for one in found if one != "no"]) > 2:
            raise _error(text, begin, "expected '|': two operations before the reduction at most")
    return tuple(one for one in found if one != "no")


def _last(text: str, names: list[Piece], compat: bool) -> list[str]:
    stages = zip(("transform", "post"), names, strict=False)
    return [_operation(text, stage, *name, compat) for stage, name in stages]


def _operation(text: str, stage: str, name: str, at: int, compat: bool = False) -> str:
    if not name:
        raise _error(text, at, f"expected an operation of the stage {stage} ('no' for none)")
    if stage == "reduce" and "," in name:
        raise _error(text, at + name.index(","), "expected '|': one reduction only")
    try:
        return known(stage, name, compat)
    except ValueError as error:
        raise _error(text, at, str(error)) from None


def _is_option(stage: str) -> bool:
    return "=" in stage or stage in _SIGNS or stage.lower() == "compat"


def _options(text: str, stages: list[Piece]) -> dict[str, float | int | bool]:
    options: dict[str, float | int | bool] = {}
    for stage, at in stages:
        name, value = _option(text, stage, at)
        if name in options:
            raise _error(text, at, f"the {name} is given twice")
        options[name] = value
    return options


def _option(text: str, stage: str, at: int) -> tuple[str, float | int | bool]:
    name, equals, value = (part.strip() for part in stage.partition("="))
    if stage.lower() == "compat":
        return "compat", True
    if stage in _SIGNS:
        return "sign", _SIGNS[stage]
    if equals and name.lower() == "sign" and value in _SIGNS:
        return "sign", _SIGNS[value]
    if equals and name.lower() in _SPREAD_NAMES:
        begin = at + stage.index("=") + 1
        try:
            spread = float(value)
        except ValueError:
            raise _error(text, begin, f"expected a number, found {value!r}") from None
        if not 0 < spread <= 0.5:
            raise _error(text, begin, f"expected a spread λ in (0, 0.5], found {value}")
        return "spread", spread
    raise _error(text, at, f"expected λ=NUMBER, '+', '-', sign=+, sign=- or compat, found {stage!r}")


def _error(text: str, at: int, message: str) -> ValueError:
    return ValueError(f"not an allocation function, at position {at + 1} of {text!r}: {message}")
