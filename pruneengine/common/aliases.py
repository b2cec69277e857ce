"""Former names of dataclass fields and of arguments, accepted for one release after a renaming."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from pruneengine.common.errors import InputTypeError

T = TypeVar("T")
P = ParamSpec("P")


def accept_former_name(former: str, name: str) -> Callable[[type[T]], type[T]]:
    """Return a class decorator that lets the constructor take the field ``name`` by its former name, too.

    Where both are given the former name counts: ``dataclasses.replace(value, former=...)`` passes the value's own field
    beside it. The class itself defines a property of the former name for readers.
    """

    def decorate(kind: type[T]) -> type[T]:
        build = kind.__init__

        @functools.wraps(build)
        def build_from_either(self: T, *values: Any, **named: Any) -> None:
            if former in named:
                named[name] = named.pop(former)
            build(self, *values, **named)

        type.__setattr__(kind, "__init__", build_from_either)
        return kind

    return decorate


def accept_former_argument(former: str, name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that lets a function take the keyword argument ``name`` by its former name, too.

    The function raises TypeError where it is given both.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call_with_either(*values: P.args, **named: P.kwargs) -> T:
            if former in named:
                if name in named:
                    raise InputTypeError(f"{function.__name__} takes {name}, or {former} (its former name), got both")
                named[name] = named.pop(former)
            return function(*values, **named)

        return call_with_either

    return decorate
