"""Searches over plans: propose, score, allocate, plan, mask, evaluate, tell.

Package and verb share their name, so the package can be called: ``pruneengine.search(model, texts, config)`` is
:func:`pruneengine.search.adapruner.search`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, *arguments: Any, **options: Any):
        from pruneengine.search.adapruner import search

        return search(*arguments, **options)


sys.modules[__name__].__class__ = _Verb
