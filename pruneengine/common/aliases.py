"""Former names of dataclass fields, accepted for one release after a field was renamed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


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
