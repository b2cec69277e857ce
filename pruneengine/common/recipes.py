"""Recipes as text: YAML, in which ``1e-4`` is a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pruneengine.common.optional_imports import needs

# PyYAML follows YAML 1.1, where a power needs a dot before it and a sign in it: 1e-4 would be a string.
_POWER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def read_yaml(text: str) -> Any:
    """The values that a text holds; ValueError where it is no YAML, ImportError without the extra "cli"."""
    with needs("cli"):
        import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("-+0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def write_yaml(values: Mapping[str, Any]) -> str:
    """Keys and values in their order; ImportError without the extra "cli"."""
    with needs("cli"):
        import yaml
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
