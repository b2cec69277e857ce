"""Parser of allocation functions: our notation and the strings of DSA's authors.

Names are looked up; nothing is evaluated.

Our notation, spaces and letter case free::

    function  := pre "|" reduce [ "|" last ] { "|" option }
    pre       := name [ "," name ]                "no" for none; absminmax, absnorm and absexp are two names in one
    reduce    := name
    last      := transform [ "," post ]           "no" for none
    option    := spread | sign | "compat"         each at most once, in any order
    spread    := ( "λ" | "lambda" | "spread" ) "=" number         in (0, 0.5]; 0.08 when absent
    sign      := "+" | "-" | "sign=+" | "sign=-"                  "+" when absent

An example is ``absminmax | var | atan, sigmoid | λ=0.08``. Names are in :mod:`.names`. :class:`Function` prints itself
in this notation, and the text reads back as an equal value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pruneengine.common.errors import InputError, InputTypeError
from pruneengine.sparse.functions.function import SPREAD, Function
from pruneengine.sparse.functions.names import COMPOUNDS, known

_SPREAD_NAMES = ("λ", "lambda", "spread")
_SIGNS = {"+": 1, "-": -1, "+1": 1, "-1": -1}
Piece = tuple[str, int]


def parse(text: str) -> Function:
    """Return the function of a text in our notation or the authors' (``W:(..)-(..)-(..)-(..)``).

    Raises:
        ValueError: the text is not a function; the message has the position (from 1) and what was expected there.
        TypeError: the argument is no text.
    """
    if not isinstance(text, str):
        raise InputTypeError(f"a function must be text, got {text!r}")
    if re.match(r"\s*W\s*:", text, re.IGNORECASE):
        return parse_published(text)
    stages = list(_pieces(text, "|", 0))
    if len(stages) < 2:
        raise _error(text, len(text), "expected '|' and a reduction: pre | reduce | transform, post | λ=0.08")
    first, second, *rest = stages
    compat = any(stage.lower() == "compat" for stage, _ in rest)
    pre = _pre(text, *first, compat)
    reduce = _operation(text, "reduce", *second)
    transform, post = "no", "no"
    if rest and not _is_option(rest[0][0]):
        names = list(_pieces(rest[0][0], ",", rest[0][1]))
        if len(names) > 2:
            raise _error(text, names[2][1], "expected '|' or the end: a transform and a post operation at most")
        transform, post = _last(text, names, compat)
        rest = rest[1:]
    spread, sign, compat = _options(text, rest)
    return Function(pre, reduce, transform, post, spread, sign, compat)


def parse_published(text: str) -> Function:
    """Return the compat function of a string of the authors, as their code reads it.

    ``W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)`` holds pre, reduction, transform and post, and λ. Their code parses the λ and
    never uses it: the spread is 0.08, its ``--Lamda``. A string of three parts such as ``W:(ABS)-(VAR)-(SIN)`` has no
    λ. On ``W:(ABS)-(VAR)-(9)`` their code fails for want of an operation "9"; we read it as it must have been meant:
    nothing after the reduction, and again a λ that is not used.

    Raises:
        ValueError: another form (the message has the position and what was expected), a reduction that only exists on
            matrices, or several operations in the reduction.
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
    transform, post = _last(text, last, compat=True)
    return Function(pre, reduce, transform, post, compat=True)


def _groups(text: str, at: int) -> Iterator[Piece]:
    group = re.compile(r"\s*\(([^()|-]*)\)\s*")
    while True:
        match = group.match(text, at)
        if not match:
            raise _error(text, at, "expected operations in parentheses")
        yield match[1], match.start(1)
        at = match.end()
        if at == len(text):
            return
        if text[at] != "-":
            raise _error(text, at, f"expected '-' or the end, found {text[at]!r}")
        at += 1


def _pieces(text: str, separator: str, at: int) -> Iterator[Piece]:
    """Yield the parts between separators, without the spaces around them, each with its position."""
    for part in text.split(separator):
        yield part.strip(), at + len(part) - len(part.lstrip())
        at += len(part) + len(separator)


def _pre(text: str, stage: str, at: int, compat: bool) -> tuple[str, ...]:
    operations: list[str] = []
    for name, begin in _pieces(stage, ",", at):
        operations += COMPOUNDS.get(name.lower()) or [_operation(text, "pre", name, begin, compat)]
        if len([operation for operation in operations if operation != "no"]) > 2:
            raise _error(text, begin, "expected '|': two operations before the reduction at most")
    return tuple(operation for operation in operations if operation != "no")


def _last(text: str, names: list[Piece], compat: bool) -> tuple[str, str]:
    """Return the transform and the post operation of up to two names; "no" for a missing one."""
    stages = zip(("transform", "post"), names, strict=False)
    operations = [_operation(text, stage, *name, compat) for stage, name in stages]
    transform, post = [*operations, "no", "no"][:2]
    return transform, post


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


def _options(text: str, stages: list[Piece]) -> tuple[float, int, bool]:
    """Return spread, sign and compat, with the defaults of :class:`Function` for the missing ones."""
    options: dict[str, float] = {}
    for stage, at in stages:
        name, value = _option(text, stage, at)
        if name in options:
            raise _error(text, at, f"the {name} is given twice")
        options[name] = value
    return options.get("spread", SPREAD), int(options.get("sign", 1)), "compat" in options


def _option(text: str, stage: str, at: int) -> tuple[str, float]:
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


def _error(text: str, at: int, message: str) -> InputError:
    return InputError(f"not an allocation function, at position {at + 1} of {text!r}: {message}")
