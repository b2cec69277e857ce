"""Searches over plans: propose, score, allocate, plan, mask, evaluate, tell.

Package and verb share a name, so the package can be called: ``pruneengine.search(model, texts, config)`` is
:func:`pruneengine.search.adapruner.search.search`, or for a :class:`DsaConfig`
:func:`pruneengine.search.dsa.search.search_dsa`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, model: Any, texts: Any, config: Any = None, *arguments: Any, **options: Any) -> Any:
        from pruneengine.search.adapruner.search import search
        from pruneengine.search.dsa.config import DsaConfig
        from pruneengine.search.dsa.search import search_dsa

        if isinstance(config, DsaConfig):
            return search_dsa(model, texts, config, *arguments, **options)
        return search(model, texts, config, *arguments, **options)


sys.modules[__name__].__class__ = _Verb
