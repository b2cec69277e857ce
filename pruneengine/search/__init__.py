"""Searches over plans: propose, score, allocate, plan, mask, evaluate, tell.

Package and verb share their name, so the package can be called: ``pruneengine.search(model, texts, config)`` is
:func:`pruneengine.search.adapruner.search`, or :func:`pruneengine.search.dsa.search_dsa` for a :class:`DsaConfig`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, model: Any, texts: Any, config: Any = None, *arguments: Any, **options: Any):
        from pruneengine.search.adapruner import search
        from pruneengine.search.dsa import search_dsa
        from pruneengine.search.dsa_config import DsaConfig

        verb = search_dsa if isinstance(config, DsaConfig) else search
        return verb(model, texts, config, *arguments, **options)


sys.modules[__name__].__class__ = _Verb
